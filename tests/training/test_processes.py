"""Several processes, and several micro-batches, train as one does with the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from foveate.errors import ConfigurationError
from foveate.glimpse import GlimpseModule
from foveate.training.checkpoints import last_checkpoint
from foveate.training.glimpse.objectives import Objective
from foveate.training.glimpse.run import GlimpseSettings, train, training_arguments

from .runs import FAST, command

ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
PROGRAM = "import typer; from foveate.cli.train_glimpse import glimpse; typer.run(glimpse)"
STEPS = FAST | {"max_steps": 2, "save_steps": 2, "logging_steps": 1}
WITHOUT = {"le_dropout": 0.0}
BOTH = Objective(distillation=1.0, gate_temperature=0.0)  # nothing is drawn


def uneven(settings: GlimpseSettings) -> str:
    """Eight rows whose answers differ in length, so that means over tokens are no means over rows."""
    source = Path(settings.data)
    rows = [json.loads(line) for line in source.read_text().splitlines()][:8]
    path = source.with_name("uneven.jsonl")
    path.write_text(
        "".join(json.dumps(row | {"answer": "one " * (i % 4 * 3 + 1)}) + "\n" for i, row in enumerate(rows))
    )
    return str(path)


def launched(run: GlimpseSettings, tmp_path: Path, *more: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    given = [*launch, str(program), *command(run), *more]
    done = subprocess.run(given, env=ENVIRONMENT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def logged(folder: Path) -> list[dict[str, Any]]:
    history = json.loads((last_checkpoint(folder) / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loc_loss" in entry]


def agree(one: Path, other: Path) -> None:
    """Weights after two steps, and everything that was logged on the way."""
    expected, actual = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, atol=2e-5, rtol=1e-4, msg=name)
    for ours, theirs in zip(logged(one), logged(other), strict=True):
        names = ("loss", "le_loss", "loc_loss", "dice_loss", "kl_loss", "keep_loss", "kept", "recall", "grad_norm")
        for name in names:
            assert theirs[name] == pytest.approx(ours[name], rel=1e-3, abs=2e-5), name


def test_micro_batches_do_not_matter(settings: GlimpseSettings, tmp_path: Path) -> None:
    run = replace(settings, data=uneven(settings), module=WITHOUT, objective=BOTH)
    sizes = ((4, 1), (2, 2), (1, 4))
    for size, steps in sizes:
        arguments = STEPS | {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        train(replace(run, out=tmp_path / str(size), arguments=arguments | {"optim": "sgd"}))
    for size, _ in sizes[1:]:
        agree(tmp_path / "4", tmp_path / str(size))


@pytest.mark.slow
def test_two_processes_train_as_one(settings: GlimpseSettings, tmp_path: Path) -> None:
    """Started by a launcher on a CPU, without being told that it is one."""
    arguments = {name: value for name, value in STEPS.items() if name != "use_cpu"} | {"optim": "sgd"}
    run = replace(settings, data=uneven(settings), module=WITHOUT, objective=BOTH)
    alone = replace(run, out=tmp_path / "alone", arguments=arguments | {"per_device_train_batch_size": 4})
    train(alone)
    two = replace(run, out=tmp_path / "two", arguments=arguments)
    launched(two, tmp_path, "--objective", "both", "--module", "le_dropout=0.0", "--loss", "gate_temperature=0")
    assert json.loads((two.out / "training.json").read_text())["processes"] == 2
    agree(alone.out, two.out)


@pytest.mark.slow
def test_missing_answers_are_asked_for_once(settings: GlimpseSettings, tmp_path: Path) -> None:
    source = Path(settings.data)
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    bare = source.with_name("two.jsonl")
    bare.write_text("".join(json.dumps({k: r[k] for k in ("image", "question")}) + "\n" for r in rows))
    run = replace(settings, data=str(bare), arguments=FAST | {"max_steps": 2})
    launched(run, tmp_path, "--objective", "distill")
    asked = [json.loads(line)["row"] for line in (run.out / "answers.jsonl").read_text().splitlines()[1:]]
    assert asked == list(range(1, len(rows) + 1))
    GlimpseModule.from_pretrained(run.out)


def test_processes_that_would_train_apart_are_refused(
    settings: GlimpseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert training_arguments(replace(settings, arguments={})).use_cpu is not torch.accelerator.is_available()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match="2 processes"):
        training_arguments(replace(settings, arguments={"use_cpu": False}))
