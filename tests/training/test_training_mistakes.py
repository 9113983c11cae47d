"""Mistakes that show before training, or tell how to go on: layers, values, rows, a full disk, rights of files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from foveate.errors import ConfigurationError, DataError, FoveateError, InputError, OutputError
from foveate.files.atomic import publish, replacing
from foveate.glimpse import GlimpseModule
from foveate.inference.loading import load
from foveate.training.glimpse.objectives import Objective
from foveate.training.glimpse.run import GlimpseSettings, train
from foveate.training.plus import run as plus
from foveate.training.runs import told_of_a_full_disk
from foveate.zoo import DEFAULT, resolve

from .runs import FAST, command

ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
ONE = FAST | {"max_steps": 1, "save_steps": 1}


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ({"reduce_layer": 99}, r"reduce_layer=99: the model has layers 0\.\.3"),
        ({"reduce_layer": -1}, r"reduce_layer=-1"),
        ({"selected_layers": 3}, r"selected_layers=3 must be a list, for example \[3\]"),
        ({"selected_layers": ["3"]}, "each is a whole number"),
        ({"selected_layers": [9]}, "must lie in"),
        ({"le_layers": [0, 4]}, r"le_layers=\[0, 4\]: the model has layers 0\.\.3"),
        ({"selected_visual_layers": [7]}, "7"),
        ({"vip_width": "wide"}, "vip_width='wide': expected a whole number"),
        ({"le_dropout": None}, "le_dropout=None: expected a number"),
        ({"threshold": True}, "threshold=True: expected a number"),
        ({"deep_supervision": 1}, "expected true or false"),
    ],
)
def test_impossible_modules_are_refused(settings: GlimpseSettings, module: dict[str, Any], message: str) -> None:
    with pytest.raises(FoveateError, match=message):
        train(replace(settings, module=module))


@pytest.mark.parametrize("values", [{"language": "much"}, {"bce": -1}, {"keep_rate": float("nan")}, {"official": 1}])
def test_impossible_weights_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(values))):
        Objective(**values)


def test_a_layer_that_the_model_has_not(run: plus.PlusSettings) -> None:
    with pytest.raises(ConfigurationError, match=r"layer=99: the model has layers 0\.\.3"):
        plus.train(replace(run, layer=99))


def table(settings: GlimpseSettings, name: str, text: str) -> str:
    path = Path(settings.data).with_name(name)
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": "What is <|image_pad|> here?"}, "row 2: .*image_pad"),
        ({"answer": "an <|image_pad|>"}, "row 2: .*image_pad"),
        ({"boxes": "[[0, 0, 1, 1]]"}, "row 2: .*box"),
        ({"boxes": [["0", "0", "1", "1"]]}, "row 2: .*box"),
    ],
)
def test_bad_rows_are_named_or_left_out(settings: GlimpseSettings, change: dict[str, Any], message: str) -> None:
    lines = Path(settings.data).read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | change)
    run = replace(settings, data=table(settings, "changed.jsonl", "\n".join(lines)), arguments=ONE)
    with pytest.raises(DataError, match=message):
        train(run)
    train(replace(run, skip_bad=True))
    assert json.loads((run.out / "training.json").read_text())["rows_skipped"] == 1


def test_a_placeholder_in_the_system_message(settings: GlimpseSettings, run: plus.PlusSettings) -> None:
    for train_, given in ((train, settings), (plus.train, run)):
        with pytest.raises(InputError, match="the system message holds"):
            train_(replace(given, system="Look at <|image_pad|>."))


def test_a_table_without_rows(settings: GlimpseSettings) -> None:
    with pytest.raises(DataError, match="no usable row"):
        train(replace(settings, data=table(settings, "empty.jsonl", "")))


FULL = """
import resource
from transformers import Trainer
step = Trainer.training_step
def filled(self, *given, **named):
    if self.state.global_step == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    return step(self, *given, **named)
Trainer.training_step = filled
from foveate.cli import main
main()
"""


def test_a_full_disk(settings: GlimpseSettings) -> None:
    """What was written before counts, and the message says how to go on."""
    given = [sys.executable, "-c", FULL, "train", "glimpse", *command(replace(settings, arguments=FAST))]
    own = {
        name: value for name, value in ENVIRONMENT.items() if not name.startswith("COVERAGE")
    }  # it writes files, too
    done = subprocess.run(given, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "--resume" in done.stderr
    assert not (settings.out / "model.safetensors").exists()
    train(replace(settings, resume=True, arguments=FAST))
    assert (settings.out / "model.safetensors").exists()


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    for error in (OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing")):
        with pytest.raises(OutputError, match="--resume"), told_of_a_full_disk(tmp_path):
            raise error
    with pytest.raises(PermissionError), told_of_a_full_disk(tmp_path):
        raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_rights_that_the_user_gives(settings: GlimpseSettings, umask: int, mode: int) -> None:
    """Weights are written by a library that gives them to their owner alone."""
    before = os.umask(umask)
    try:
        train(replace(settings, arguments=ONE))
        with replacing(settings.out / "text") as partial:
            partial.write_text("a")
            partial.chmod(0o600)
        (settings.out / "third").write_text("b")
        (settings.out / "third").chmod(0o600)
        publish(settings.out / "third")
    finally:
        os.umask(before)
    files = [path for path in settings.out.rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".safetensors"]) == 2
    assert {path.name: path.stat().st_mode & 0o777 for path in files} == dict.fromkeys((p.name for p in files), mode)
    assert not [path for path in files if path.name.startswith(".")]


def test_adapters_too(run: plus.PlusSettings) -> None:
    before = os.umask(0o022)
    try:
        plus.train(replace(run, arguments={**run.arguments, "max_steps": 1}))
    finally:
        os.umask(before)
    found = {path.stat().st_mode & 0o777 for path in run.out.rglob("*.safetensors")}
    assert found == {0o644}


def test_eval_finds_the_module_beside_the_model(tmp_path: Path) -> None:
    """As `ask` does; the name of the setting stays short."""
    from foveate.evals.evaluate import Plan, evaluate
    from foveate.specs.settings import grid

    folder = tmp_path / "model"
    shutil.copytree(resolve(DEFAULT), folder)
    if not (folder / "glimpse").exists():
        torch.manual_seed(0)
        GlimpseModule.for_model(load(str(folder))[0]).save_pretrained(folder / "glimpse")
    settings = grid(["glimpse_prune"], [], str(folder))
    assert [setting.name for setting in settings] == ["unpruned", "glimpse_prune"]
    assert settings[1].parameters == {"module": str(folder / "glimpse")}
    found = evaluate(Plan(model=str(folder), settings=settings, data="scenes:val", limit=2, out=tmp_path / "out"), "x")
    assert {row["setting"] for row in found.found["results"]} == {"unpruned", "glimpse_prune"}
    assert load_file(folder / "glimpse" / "model.safetensors")
    with pytest.raises(ConfigurationError, match="needs a trained module"):
        grid(["glimpse_prune"], [], str(tmp_path))
