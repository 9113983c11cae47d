"""Reinforcement learning by several processes or micro-batches is that of one with the same global batch."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from foveate.glimpse import GlimpseModule
from foveate.inference.loading import load
from foveate.training.base import ADAPTER
from foveate.training.checkpoints import last_checkpoint
from foveate.training.plus import run as plus
from foveate.training.plus import schedule as schedules
from foveate.training.plus.judge import JudgeError
from foveate.training.plus.rewards import Rewards
from foveate.training.plus.threshold import ThresholdPolicy
from foveate.training.plus.trainer import THRESHOLD
from foveate.training.processes import world

from .plus import QUICK, trainer_of
from .processes import FailedProcessError, forked
from .test_plus_runs import write_schedule

GROUP = 4
SHARES = torch.tensor([0.07, 0.38, 0.61, 0.93])
"""Where the completions of a group are drawn from the distribution of a token."""


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn depends on the place in the group only, not on the process or the batch."""

    def multinomial(probabilities: Tensor, num_samples: int, **_: Any) -> Tensor:
        shares = SHARES.repeat(len(probabilities) // GROUP).to(probabilities)
        return torch.searchsorted(probabilities.cumsum(-1), shares[:, None]).clamp(max=probabilities.shape[-1] - 1)

    def sample(policy: ThresholdPolicy, count: int, spread: bool = True) -> Tensor:
        return (policy.mean + 8 * (SHARES.repeat(count // GROUP) - 0.5)).detach()

    monkeypatch.setattr(torch, "multinomial", multinomial)
    monkeypatch.setattr(ThresholdPolicy, "sample", sample)


@pytest.fixture
def deciding(base: Path, tmp_path: Path) -> Path:
    """A module whose decisions differ between thresholds near its own."""
    folder = tmp_path / "deciding"
    model, _ = load(str(base))
    torch.manual_seed(1)
    module = GlimpseModule.for_model(model, base_model="tiny", threshold=0.5)
    for name, weight in module.named_parameters():
        if name.endswith("weight") and weight.dim() > 1:
            weight.data.mul_(3)
    module.save_pretrained(folder)
    return folder


def settled(folder: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Weights and log of a run."""
    reached = last_checkpoint(folder, ADAPTER)
    log = json.loads((reached / "trainer_state.json").read_text())["log_history"]
    return load_file(reached / ADAPTER) | load_file(reached / THRESHOLD), log


def agree(one: Path, other: Path) -> None:
    (expected, ours), (actual, theirs) = settled(one), settled(other)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, atol=2e-5, rtol=1e-3, msg=name)
    names = (
        "loss",
        "reward",
        "kept_share",
        "frac_reward_zero_std",
        "threshold",
        "kl",
        "grad_norm",
        "completions/mean_length",
    )
    for mine, its in zip(ours, theirs, strict=True):
        assert {name: its[name] for name in names if name in mine} == {
            name: pytest.approx(mine[name], rel=2e-3, abs=2e-5) for name in names if name in mine
        }


@pytest.mark.usefixtures("drawn")
def test_two_processes_and_micro_batches_train_as_one(run: plus.PlusSettings, deciding: Path, tmp_path: Path) -> None:
    """With a learned threshold; rewards differ within groups, and are not 0."""
    run = replace(
        run,
        prune="glimpse",
        layer=None,
        module=str(deciding),
        learn_threshold=True,
        rewards={"pruning_rate": 1.0, "anls": 1.0},
        lora={"lora_dropout": 0.0},
    )

    def sized(name: str, size: int, steps: int) -> plus.PlusSettings:
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        return replace(run, out=tmp_path / name, arguments={**QUICK, **sizes, "optim": "sgd", "learning_rate": 1.0})

    plus.train(sized("whole", 2 * GROUP, 1))
    plus.train(sized("parts", GROUP, 2))
    for name, shard in (("two", False), ("divided", True)):
        results = forked(partial(plus.train, replace(sized(name, GROUP, 1), shard=shard)))
        assert not [str(result) for result in results if isinstance(result, FailedProcessError)]
    weights, log = settled(tmp_path / "whole")
    assert all(entry["reward"] > 0 for entry in log if "reward" in entry)
    assert any(entry["frac_reward_zero_std"] < 1 for entry in log if "reward" in entry), "all groups are of one reward"
    assert any(bool(value.any()) for name, value in weights.items() if "lora_B" in name), "nothing was learned"
    assert weights["mean"] != 0
    agree(tmp_path / "whole", tmp_path / "parts")
    agree(tmp_path / "whole", tmp_path / "two")
    agree(tmp_path / "whole", tmp_path / "divided")


class Judge:
    """One that is gone for the second process at the second step."""

    steps = 0

    def scores(self, items: list[Any]) -> list[float]:
        self.steps += 1
        if self.steps == 2 and world()[0] == 1:
            raise JudgeError("the judge is down. Go on with --resume")
        return [0.5 * (place % 2) for place in range(len(items))]


def test_a_judge_that_fails_one_process_stops_all_with_a_checkpoint(run: plus.PlusSettings) -> None:
    run = replace(run, arguments={**QUICK, "gradient_accumulation_steps": 1, "max_steps": 4, "save_steps": 4})

    def work() -> str:
        trainer = trainer_of(run, Rewards({"judge": 1.0}, Judge()))  # type: ignore[arg-type]
        with pytest.raises(JudgeError, match=r"judge is down. Go on with --resume") as error:
            trainer.train()
        return str(error.value)

    texts = forked(work)
    assert "process 1 of 2 failed" in texts[0]
    assert "process" not in texts[1]
    assert last_checkpoint(run.out, ADAPTER).name == "checkpoint-1"


def test_a_schedule_by_two_processes(run: plus.PlusSettings, tmp_path: Path) -> None:
    path = write_schedule(tmp_path / "plus.yaml", run)
    folders = forked(lambda: schedules.run(schedules.read(path)))
    assert folders == [run.out / "merged"] * 2
    for stage in ("glimpse", "rl", "retrain"):
        assert json.loads((run.out / stage / "training.json").read_text())["processes"] == 2
    model, _ = load(str(run.out / "merged"))
    GlimpseModule.from_pretrained(run.out / "merged" / "glimpse").check_fits(model)
    done = (run.out / "rl" / "training.json").stat().st_mtime_ns
    assert forked(lambda: schedules.run(schedules.read(path))) == folders
    assert (run.out / "rl" / "training.json").stat().st_mtime_ns == done
