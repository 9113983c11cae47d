"""Held-out questions decide which adapter is taken and when reinforcement learning stops; several seeds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from foveate.errors import ConfigurationError
from foveate.families import adapt
from foveate.inference.answer import Asker
from foveate.methods import find
from foveate.training.base import ADAPTER
from foveate.training.glimpse import run as supervised
from foveate.training.glimpse.run import GlimpseSettings
from foveate.training.plus import run as plus
from foveate.training.plus.held_out import HeldOut, interval
from foveate.training.plus.rewards import Rewards
from foveate.training.seeds import summary, train_seeds

from .plus import QUICK, trainer_of
from .runs import FAST


def test_rewards_are_those_of_pruned_greedy_answers(run: plus.PlusSettings, module: Path) -> None:
    """Asked the way a user would ask."""
    settings = replace(run, module=str(module), prune="glimpse", layer=None, eval_data=run.data, eval_limit=5)
    trainer = trainer_of(settings)
    found = trainer.held_out.ask(trainer.model.eval(), 0.3)
    never = {"suppress_tokens": sorted(adapt(trainer.base).token_ids.values())}
    asker = Asker(trainer.base, trainer.processing_class, QUICK["max_completion_length"], options=never)
    rows = trainer.held_out.rows
    given = asker.questions([(row.load_images(), row.question) for row in rows])
    method = find("glimpse_prune")(str(module), threshold=0.3)
    answers = asker.answer(given, method)
    right = [float(answer.text == row.answer) for answer, row in zip(answers, rows, strict=True)]
    kept = [answer.prefill.alive_per_layer(answer.row)[-1] / answer.visual_tokens for answer in answers]
    assert found["reward"] == pytest.approx(sum(right) / len(right))
    assert found["kept_share"] == pytest.approx(sum(kept) / len(kept))
    assert found["reward_low"] <= found["reward"] <= found["reward_high"]


def test_the_best_adapter_is_taken_and_the_run_stops(run: plus.PlusSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    rewards = iter((0.25, 0.5, 0.25, 0.25, 1.0))
    zeros = {"reward_low": 0.0, "reward_high": 1.0, "kept_share": 0.5}
    monkeypatch.setattr(HeldOut, "ask", lambda *_: {"reward": next(rewards), **zeros})
    monkeypatch.setattr(Rewards, "__call__", lambda self, completions, **_: [i % 2.0 for i in range(len(completions))])
    arguments = {**QUICK, "max_steps": 6, "gradient_accumulation_steps": 1, "save_total_limit": 6}
    metrics = plus.train(replace(run, eval_data=run.data, eval_limit=2, patience=2, arguments=arguments))
    assert metrics["eval_reward"] == 0.5
    assert not (run.out / "checkpoint-5").exists()
    result, best, last = (load_file(run.out / place / ADAPTER) for place in ("", "checkpoint-2", "checkpoint-4"))
    assert all(torch.equal(result[name], best[name]) for name in best)
    assert not all(torch.equal(result[name], last[name]) for name in best)
    with Image.open(run.out / "curves.png") as picture:
        assert picture.width > 500


def test_intervals() -> None:
    low, high = interval([1.0] * 10 + [0.0] * 10)
    assert (low, high) == pytest.approx((0.299, 0.701), abs=1e-3)
    assert interval([1.0] * 10)[0] == pytest.approx(0.722, abs=1e-3)  # not certain, although all are right
    assert interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    assert all(value != value for value in interval([1.0]))


def test_seeds_are_runs_of_their_own(settings: GlimpseSettings, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = FAST | {"max_steps": 1, "save_steps": 1}
    run = replace(settings, eval_data=settings.data, eval_limit=2, arguments=arguments)
    found = train_seeds(run, 2, supervised.train, supervised.check_done)
    one, other = (load_file(run.out / f"seed-{seed}/model.safetensors") for seed in (0, 1))
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert json.loads((run.out / "seeds.json").read_text()) == found
    assert len(found["eval_loss"]["values"]) == 2
    calls: list[Any] = []
    again = train_seeds(replace(run, resume=True), 2, lambda own: calls.append(own) or {}, supervised.check_done)
    assert again == found
    assert not calls
    changed = replace(run, resume=True, arguments=arguments | {"learning_rate": 0.5})
    with pytest.raises(ConfigurationError, match="learning_rate"):
        train_seeds(changed, 2, supervised.train, supervised.check_done)


def test_means_and_standard_errors() -> None:
    found = summary([{"a": 1.0, "eval_runtime": 9.0, "only": 1.0}, {"a": 2.0, "eval_runtime": 1.0}, {"a": 3.0}])
    assert found == {"a": {"mean": 2.0, "error": pytest.approx(3**-0.5), "values": [1.0, 2.0, 3.0]}}
