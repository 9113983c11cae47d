"""Killing and resuming reinforcement learning, merging its adapter, running the whole schedule."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

import foveate
from foveate.cli.app import app
from foveate.errors import CheckpointError, ConfigurationError
from foveate.glimpse import GlimpseModule
from foveate.inference.loading import load
from foveate.methods import find
from foveate.training.base import ADAPTER
from foveate.training.plus import run as plus
from foveate.training.plus import schedule as schedules
from foveate.training.plus.merge import merge

from .plus import QUICK, length_reward, picture, trainer_of

PROGRAM = "from foveate.cli import main; main()"
DYING = """
import os, signal
from transformers import Trainer
step = Trainer.training_step
def dying(self, *given, **named):
    if self.state.global_step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *given, **named)
Trainer.training_step = dying
"""
"""Kills its own process in the middle of a step, so that no clock decides when."""


def start(settings: plus.PlusSettings, steps: int, *more: str, program: str = PROGRAM) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, "train", "plus", "--model", settings.model, "--data", settings.data]
    command += ["--out", str(settings.out), "--layer", "1", "--reward", "anls=0.5", "--reward", "exact_match", *more]
    for name, value in {**QUICK, "max_steps": steps}.items():
        command += ["--set", f"{name}={value}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_training_goes_on(run: plus.PlusSettings) -> None:
    killed = start(run, 12, program=DYING + PROGRAM)
    _, errors = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, errors
    assert (run.out / "checkpoint-3" / "trainer_state.json").exists()
    assert not (run.out / ADAPTER).exists()
    refused = start(run, 12)
    assert "--resume" in refused.communicate()[1]
    assert refused.returncode == 1
    resumed = start(run, 12, "--resume")
    out, errors = resumed.communicate()
    assert resumed.returncode == 0, errors
    assert "adapter in" in out
    log = json.loads((run.out / "training.json").read_text())["log"]
    steps = [entry["step"] for entry in log if "reward" in entry]
    assert steps == list(range(1, 13))


def test_merged_model_is_the_adapted_model(run: plus.PlusSettings, tmp_path: Path) -> None:
    trainer = trainer_of(dataclasses.replace(run, arguments={**QUICK, "max_steps": 1}), length_reward)
    trainer.train()
    trainer.save_model()
    folder = merge(run.model, run.out, tmp_path / "merged", dtype="float32")
    merged, processor = load(str(folder))
    chat = [{"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "a?"}]}]
    inputs = processor.apply_chat_template(
        chat, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    with torch.no_grad():
        actual, adapted = merged(**inputs).logits, trainer.model.eval()(**inputs).logits
        plain = load(run.model)[0](**inputs).logits
    torch.testing.assert_close(actual, adapted, atol=1e-4, rtol=1e-4)
    assert (actual - plain).abs().max() > 1e-4
    with pytest.raises(ConfigurationError, match="not empty"):
        merge(run.model, run.out, folder)
    with pytest.raises(CheckpointError, match="no LoRA adapter"):
        merge(run.model, tmp_path, tmp_path / "again")


def write_schedule(path: Path, run: plus.PlusSettings, **changes: Any) -> Path:
    quick = {"max_steps": 2, "use_cpu": True, "disable_tqdm": True}
    values = {
        "model": run.model,
        "data": run.data,
        "out": str(run.out),
        "glimpse": {"arguments": quick, "objective": {"language": 0.0}},
        "rl": {"arguments": QUICK, "rewards": {"anls": 1.0}},
        **changes,
    }
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_whole_schedule_runs_and_goes_on(
    run: plus.PlusSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_schedule(tmp_path / "plus.yaml", run)
    with monkeypatch.context() as patch:
        patch.setattr(schedules, "merge", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            schedules.run(schedules.read(path))
    done = [(run.out / stage / "training.json").stat().st_mtime_ns for stage in ("glimpse", "rl")]
    folder = schedules.run(schedules.read(path))
    assert [(run.out / stage / "training.json").stat().st_mtime_ns for stage in ("glimpse", "rl")] == done
    assert schedules.run(schedules.read(path)) == folder
    changed = write_schedule(tmp_path / "changed.yaml", run, rl={"arguments": QUICK, "rewards": {"exact_match": 1.0}})
    with pytest.raises(ConfigurationError, match="rewards"):  # done before, but otherwise
        schedules.run(schedules.read(changed))
    model, _ = load(str(folder))
    module = GlimpseModule.from_pretrained(folder / "glimpse").eval()
    assert module.config.base_model == str(folder)
    with foveate.prune(model, find("glimpse_prune")(module)):
        pass


BOTH = {"pruning_rate": 1.0, "anls": 1.0}


def test_a_learned_threshold_goes_into_the_retrained_module(
    run: plus.PlusSettings, module: Path, tmp_path: Path
) -> None:
    learning = {"arguments": QUICK, "prune": "glimpse", "learn_threshold": True, "rewards": BOTH}
    path = write_schedule(tmp_path / "plus.yaml", run, module=str(module), rl=learning)
    config = GlimpseModule.from_pretrained(schedules.run(schedules.read(path)) / "glimpse").config
    learned = json.loads((run.out / "rl" / "training.json").read_text())["threshold"]
    assert config.threshold == pytest.approx(learned)
    assert learned != 0.5
    assert not (run.out / "glimpse").exists(), "a module was given"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rll": {}}, "unknown rll"),
        ({"rl": {"learning_rate": 1}}, "rl: unknown learning_rate"),
        ({"glimpse": {"objective": {"speed": 1}}}, "objective: unknown speed"),
        ({"retrain": {"epochs": 1}}, "retrain: unknown epochs"),
        ({"rl": {"arguments": {"beata": 1}}}, "no field beata"),
        ({"glimpse": {"arguments": {"lr": 1}}}, "no field lr"),
        ({"rl": {"rewards": {"exact_mach": 1}}}, "exact_mach"),
        ({"rl": {"judge": {"modle": 1}, "rewards": {"judge": 1}}}, "modle"),
        ({"rl": {"lora": None}}, "merges an adapter"),
        ({"rl": {"lora": {"rank": 1}}}, "rank"),
        ({"rl": {"prune": "glimps"}}, "glimps"),
        ({"glimpse": ["a"]}, "mapping"),
    ],
)
def test_a_wrong_schedule_is_refused_before_it_starts(
    run: plus.PlusSettings, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        schedules.read(write_schedule(tmp_path / "plus.yaml", run, **changes))
    for text in ("just text", "a: [", ""):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ConfigurationError):
            schedules.read(tmp_path / "bad.yaml")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        schedules.read(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--config"),
        (["--config", "x.yaml", "--learn-threshold", "--limit", "3"], "into it"),
        (["--model", "m", "--data", "d", "--out", "o", "--reward", "anls=much"], "'much' is not a number"),
        (["--model", "m", "--data", "d", "--out", "o", "--set", "beta"], "expected NAME=VALUE"),
    ],
)
def test_wrong_command_lines(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["train", "plus", *options])
    assert isinstance(result.exception, ConfigurationError)
    assert message in str(result.exception)


def test_merging_from_the_command_line(run: plus.PlusSettings, tmp_path: Path) -> None:
    trainer_of(dataclasses.replace(run, arguments={**QUICK, "max_steps": 1}), length_reward).save_model()
    out = tmp_path / "merged"
    result = CliRunner().invoke(app, ["merge", "--model", run.model, "--adapter", str(run.out), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert (out / "model.safetensors").is_file()
    assert not list(tmp_path.glob("*.partial"))


def test_an_adapter_of_another_model_is_named(run: plus.PlusSettings, tmp_path: Path) -> None:
    trainer_of(run, length_reward).save_model()
    with pytest.raises(CheckpointError, match="was trained on"):
        merge("foveate/scenes-qwen2_5_vl", run.out, tmp_path / "merged")
