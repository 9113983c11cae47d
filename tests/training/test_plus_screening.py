"""Questions that teach nothing are left out before training; what was found is kept for a resume and for other runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from foveate.errors import ConfigurationError, DataError
from foveate.training.plus import run as plus
from foveate.training.plus import screening
from foveate.training.plus.rewards import Rewards

from .plus import QUICK


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Rewards of a question are unequal if its number is odd; every question that is sampled is noted."""
    found: list[str] = []

    def rewards(self: Rewards, completions: list[Any], question: list[str], *_: Any, **__: Any) -> list[float | None]:
        found.extend(dict.fromkeys(question))
        return [float(place % 2 and question[place].endswith(("1?", "3?"))) for place in range(len(completions))]

    monkeypatch.setattr(Rewards, "__call__", rewards)
    return found


@pytest.fixture
def numbered(run: plus.PlusSettings, tmp_path: Path) -> plus.PlusSettings:
    """The short run, its questions numbered."""
    rows = [json.loads(line) for line in Path(run.data).read_text().splitlines()]
    table = Path(run.data).parent / "numbered.jsonl"
    lines = [json.dumps({**row, "question": f"number {place}?"}) for place, row in enumerate(rows)]
    table.write_text("\n".join(lines) + "\n")
    arguments = {**QUICK, "max_steps": 1, "gradient_checkpointing": False}
    return dataclasses.replace(run, data=str(table), screen=4, arguments=arguments)


def test_only_what_teaches_is_trained_on(numbered: plus.PlusSettings, asked: list[str], tmp_path: Path) -> None:
    rows = len(Path(numbered.data).read_text().splitlines())
    odd = [f"number {place}?" for place in range(rows) if str(place).endswith(("1", "3"))]
    plus.train(numbered)
    sampled, trained = asked[:rows], asked[rows:]
    assert sorted(sampled) == sorted(f"number {place}?" for place in range(rows))
    assert set(trained) <= set(odd)
    summary = json.loads((numbered.out / "training.json").read_text())
    assert summary["rows"] == len(odd)
    notes = (numbered.out / "screen.jsonl").read_text().splitlines()
    assert len(notes) == 1 + rows
    # another run with the same file asks nothing again; half a line, of a run that was killed, is asked anew
    asked.clear()
    (numbered.out / "screen.jsonl").write_text("\n".join(notes)[:-3])
    plus.train(dataclasses.replace(numbered, out=tmp_path / "other", screen_file=numbered.out / "screen.jsonl"))
    assert len(set(asked) - set(odd)) <= 1
    assert asked[0] == json_id(numbered, notes[-1])
    assert len((numbered.out / "screen.jsonl").read_text().splitlines()) == 2 + rows


def json_id(settings: plus.PlusSettings, line: str) -> str:
    """The question whose samples a line holds."""
    number = int(next(iter(json.loads(line))).split("-")[0])
    return str(json.loads(Path(settings.data).read_text().splitlines()[number - 1])["question"])


def test_another_pruning_needs_another_file(numbered: plus.PlusSettings, asked: list[str], tmp_path: Path) -> None:
    plus.train(numbered)
    other = dataclasses.replace(numbered, out=tmp_path / "b", layer=2, screen_file=numbered.out / "screen.jsonl")
    with pytest.raises(ConfigurationError, match="layer was 1, is 2|layer was .*, is 2"):
        plus.train(other)


@pytest.mark.parametrize("line", ['{"a', "12", "null", "not JSON"])
def test_a_file_that_holds_no_screening_is_refused(numbered: plus.PlusSettings, tmp_path: Path, line: str) -> None:
    (tmp_path / "notes.jsonl").write_text(line + "\n")
    with pytest.raises(ConfigurationError, match="holds no screening"):
        plus.train(dataclasses.replace(numbered, screen_file=tmp_path / "notes.jsonl"))


def test_how_completions_are_sampled_is_part_of_it(
    numbered: plus.PlusSettings, asked: list[str], tmp_path: Path
) -> None:
    plus.train(numbered)
    arguments = {**numbered.arguments, "generation_kwargs": {"typical_p": 0.9}}
    file = numbered.out / "screen.jsonl"
    with pytest.raises(ConfigurationError, match="typical_p was not set, is 0.9"):
        plus.train(dataclasses.replace(numbered, out=tmp_path / "b", screen_file=file, arguments=arguments))


@pytest.mark.parametrize(
    "given", [{"screen": 1}, {"screen": -3}, {"first": -1}, {"screen": 0, "screen_file": Path("x")}]
)
def test_settings_that_screen_nothing_are_refused(run: plus.PlusSettings, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="screen|first"):
        plus.train(dataclasses.replace(run, **given))


def test_a_folder_is_no_file_of_a_screening(run: plus.PlusSettings, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no file can be written"):
        plus.train(dataclasses.replace(run, screen=4, screen_file=tmp_path))


def test_nothing_left_is_an_error(numbered: plus.PlusSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screening, "teaches", lambda rewards: False)
    with pytest.raises(DataError, match="sometimes but not always"):
        plus.train(numbered)


def test_what_differs() -> None:
    assert screening.teaches([0.0, None, 1.0])
    assert not screening.teaches([1.0, None, 1.0])
    assert not screening.teaches([None, None])
    assert not screening.teaches([float("nan"), float("nan"), 1.0])
