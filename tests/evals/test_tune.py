"""Summaries against hand-made scores; the choice of a setting; the file that carries it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from foveate.cli.app import app
from foveate.errors import FoveateError
from foveate.evals import tune
from foveate.evals.plots import frontier
from foveate.evals.summary import Answers, summarise
from foveate.evals.tune import NothingRetainsError, choose, judge
from foveate.evals.tune import tuned as file_of
from foveate.methods import make
from foveate.specs import tuned
from foveate.specs.settings import Setting, grid
from foveate.specs.tuned import TunedFileError

SETTINGS = grid(["random"], [0.5, 0.25, 0.1])


def answers(name: str, scores: list[float], prefill: float, kept: float) -> Answers:
    record = {"type": "", "visual_tokens": 100, "kept_tokens": kept, "kv_bytes": 1, "vision_ms": 1.0, "select_ms": 0.0}
    return Answers(
        name, name, [record | {"prefill_ms": prefill, "sample": str(i)} for i in range(len(scores))], np.array(scores)
    )


@pytest.fixture
def rows() -> list[dict]:
    """200 samples: 1/2 loses 1 %, 1/4 loses 5 %, 1/10 loses half."""
    base = [1.0] * 180 + [0.0] * 20
    lost = lambda n: [0.0] * n + base[n:]  # noqa: E731
    return summarise(
        [
            answers("unpruned", base, 10, 100),
            answers("random 1/2", lost(1), 6, 50),
            answers("random 1/4", lost(9), 4, 25),
            answers("random 0.1", lost(90), 3, 10),
        ]
    )


def test_summaries_of_known_scores(rows: list[dict]) -> None:
    assert [row["score"] for row in rows] == [0.9, 0.895, 0.855, 0.45]
    assert rows[2]["retention"] == pytest.approx(171 / 180)
    # binomial: sd of a mean of 200 with p = 0.9 is 0.0212
    low, high = rows[0]["score_interval"]
    assert (high - low) / 2 == pytest.approx(1.96 * 0.0212, rel=0.1)
    # paired: the ratio of 1/2 varies by one sample in 180 only
    assert rows[1]["retention_low"] == pytest.approx(1 - 3 / 180, abs=0.004)
    assert rows[0]["retention_interval"] == [1.0, 1.0]


def test_a_reference_that_is_never_right_has_no_retention() -> None:
    row = summarise([answers("unpruned", [0.0] * 5, 1, 1), answers("x", [1.0] * 5, 1, 1)])[1]
    assert row["retention"] is None
    assert row["retention_low"] is None


@pytest.mark.parametrize(("demand", "name"), [(0.98, "random 1/2"), (0.9, "random 1/4"), (0.4, "random 0.1")])
def test_the_fastest_that_retains_enough(rows: list[dict], demand: float, name: str) -> None:
    assert choose(judge(rows, demand), demand).row["setting"] == name


def test_a_demand_that_nothing_meets(rows: list[dict]) -> None:
    with pytest.raises(NothingRetainsError, match=r"Nearest: random 1/2, 99\.4%"):
        choose(judge(rows, 0.999), 0.999)


def test_slower_than_unpruned_is_never_chosen(rows: list[dict]) -> None:
    for row in rows[1:]:
        row["prefill_ms"] = 11
    with pytest.raises(NothingRetainsError, match="faster"):
        choose(judge(rows, 0.1), 0.1)


def test_the_frontier(rows: list[dict]) -> None:
    rows.append(rows[2] | {"setting": "beaten", "kept_tokens": 60.0, "score": 0.8})
    assert [row["setting"] for row in frontier(rows, "kept_tokens")] == [
        "random 0.1", "random 1/4", "random 1/2", "unpruned",
    ]  # fmt: skip


def test_the_file_gives_the_method_back(rows: list[dict], tmp_path: Path) -> None:
    verdicts = judge(rows, 0.9)
    found = {"min_retention": 0.9, "run": {}, "metric": "m", "environment": {}, "command": ""}
    written = file_of(choose(verdicts, 0.9), verdicts, SETTINGS, found)
    path = tmp_path / "foveate.json"
    path.write_text(written.to_json())
    assert tuned.read(path) == make("random", keep=0.25)
    assert tuned.load(path).evidence["chosen"]["setting"] == "random 1/4"
    assert grid([str(path)], [0.5])[1] == Setting("random 1/4", "random", {"keep": 0.25})


GOOD = {"format": tuned.FORMAT, "method": "random", "parameters": {"keep": 0.5}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "Cannot read"),
        ("{", "no JSON"),
        ("[]", "has format 'list'"),
        (json.dumps(GOOD | {"format": "x"}), "has format 'x'"),
        (json.dumps(GOOD | {"method": 3}), "'method' must be"),
        (json.dumps(GOOD | {"parameters": [1]}), "'parameters' must be"),
        (json.dumps(GOOD | {"method": "gone"}), "'gone'"),
        (json.dumps(GOOD | {"parameters": {"kep": 1}}), "no parameter kep"),
        (json.dumps(GOOD | {"parameters": {"keep": 7.5}}), "must lie in"),
    ],
)
def test_unusable_files(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "foveate.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(TunedFileError, match=words):
        tuned.read(path)


def test_reading_the_file_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    heavy = ("matplotlib", "pandas", "pyarrow", "typer")
    code = f"import sys, foveate.specs.tuned; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_command_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a prefill as long as its tokens: what a busy machine measures on twelve samples decides nothing
    monkeypatch.setattr(
        tune, "judge", lambda rows, least: judge([row | {"prefill_ms": row["kept_tokens"]} for row in rows], least)
    )
    options = ["tune", "--data", "scenes:val", "--limit", "12", "--method", "random", "--keep", "1/2"]
    paths = ["--out", str(tmp_path / "o"), "--write", str(tmp_path / "foveate.json")]
    result = CliRunner().invoke(app, [*options, *paths, "--min-retention", "0.01"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "chosen" in result.output
    assert tuned.read(tmp_path / "foveate.json").name == "random"
    with pytest.raises(FoveateError, match="No setting is sure to retain"):
        CliRunner().invoke(app, [*options, *paths, "--min-retention", "1.5"], catch_exceptions=False)
