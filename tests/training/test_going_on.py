"""What a run was started with is what it goes on with: model, data, settings, and answers that were asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from foveate.batch.parts import BatchError
from foveate.errors import ConfigurationError
from foveate.inference.loading import load
from foveate.training.glimpse.objectives import Objective
from foveate.training.glimpse.run import GlimpseSettings, train
from foveate.training.identity import table_digest
from foveate.training.plus import run as plus

from .plus import QUICK
from .runs import DISTILL, FAST

ONE = FAST | {"max_steps": 1, "save_steps": 1}
TWO = ONE | {"max_steps": 2}


@pytest.fixture
def other(base: Path, tmp_path: Path) -> Path:
    """Another model of the same sizes."""
    folder = tmp_path / "other"
    model, _ = load(str(base))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.01)
    shutil.copytree(base, folder)
    model.save_pretrained(folder)
    return folder


def copied(data: str, folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]] = dict) -> Path:
    """The table with its images in another folder, its rows changed."""
    shutil.copytree(Path(data).parent, folder)
    path = folder / Path(data).name
    rows = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def bare(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("image", "question")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": Objective(language=0.5)}, r"objective.language was 1.0, is 0.5"),
        ({"module": {"vip_width": 64}}, r"module.vip_width was not set, is 64"),
        ({"arguments": TWO | {"learning_rate": 0.5}}, r"learning_rate was 0.01, is 0.5"),
        ({"arguments": TWO | {"gradient_accumulation_steps": 3}}, r"global_batch was 2, is 6"),
        ({"system": "Answer in one word."}, "system was null"),
        ({"limit": 4}, "limit was null, is 4"),
    ],
)
def test_other_settings_are_named(settings: GlimpseSettings, changes: dict[str, Any], message: str) -> None:
    train(replace(settings, arguments=ONE))
    with pytest.raises(ConfigurationError, match=message):
        train(replace(settings, resume=True, **{"arguments": TWO, **changes}))
    train(replace(settings, resume=True, arguments=TWO | {"logging_steps": 1}))


def test_another_model_or_other_data_are_named(settings: GlimpseSettings, other: Path, tmp_path: Path) -> None:
    train(replace(settings, arguments=ONE))
    with pytest.raises(ConfigurationError, match="weights.base was"):
        train(replace(settings, resume=True, arguments=TWO, model=str(other)))
    turned = copied(settings.data, tmp_path / "turned", lambda row: row | {"answer": row["answer"][::-1] + "!"})
    with pytest.raises(ConfigurationError, match="data was"):
        train(replace(settings, resume=True, arguments=TWO, data=str(turned)))
    moved = copied(settings.data, tmp_path / "moved")
    moved.write_bytes(Path(settings.data).read_bytes())
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(settings.model, elsewhere)
    train(replace(settings, resume=True, arguments=TWO, data=str(moved), model=str(elsewhere)))


def test_reinforcement_learning_too(run: plus.PlusSettings, module: Path, other: Path, tmp_path: Path) -> None:
    first = {**QUICK, "max_steps": 1}
    plus.train(replace(run, arguments=first))
    for changes, message in (
        ({"layer": 0}, "layer was 1, is 0"),
        ({"rewards": {"anls": 1.0}}, "rewards.anls was not set"),
        ({"arguments": {**QUICK, "beta": 0.1}}, "beta was 0.04, is 0.1"),
        ({"model": str(other)}, "weights.base was"),
        ({"module": str(module), "prune": "glimpse"}, "prune was"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            plus.train(replace(run, resume=True, **changes))
    plus.train(replace(run, resume=True))


def test_answers_of_another_model_are_not_taken(settings: GlimpseSettings, other: Path, tmp_path: Path) -> None:
    """Also in a folder where nothing but answers are left."""
    data = copied(settings.data, tmp_path / "bare", bare)
    run = replace(settings, data=str(data), objective=DISTILL, arguments=ONE)
    train(run)

    def fresh(name: str) -> Path:
        shutil.copytree(run.out / "answers", tmp_path / name / "answers")
        return tmp_path / name

    with pytest.raises(BatchError, match="weights: .* there, .* now"):
        train(replace(run, out=fresh("model"), model=str(other)))
    with pytest.raises(BatchError, match="system message: None there, 'Be brief.' now"):
        train(replace(run, out=fresh("system"), system="Be brief."))
    repainted = copied(str(data), tmp_path / "repainted")
    Image.new("RGB", (112, 140), "green").save(repainted.parent / "3.png")
    with pytest.raises(BatchError, match="questions: "):
        train(replace(run, out=fresh("images"), data=str(repainted)))
    train(replace(run, out=fresh("same")))
    part = "answers/part-000000.parquet"
    assert (tmp_path / "same" / part).stat().st_mtime_ns == (run.out / part).stat().st_mtime_ns, "asked again"


def test_saved_datasets_are_known_by_their_content(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for name, question in (("one", "a?"), ("two", "b?")):
        datasets.Dataset.from_dict({"question": [question]}).save_to_disk(tmp_path / name)
    shutil.copytree(tmp_path / "one", tmp_path / "moved")
    one, two, moved = (table_digest(str(tmp_path / name)) for name in ("one", "two", "moved"))
    assert one == moved != two
    assert table_digest("scenes:val") == "scenes:val"
