"""Short trainings on the shipped model, from the built-in scenes to a module that prunes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from foveate import scenes, zoo
from foveate.inference.answer import Asker
from foveate.methods import GlimpsePrune
from foveate.training.checkpoints import last_checkpoint
from foveate.training.glimpse.objectives import Objective
from foveate.training.glimpse.run import GlimpseSettings, train

from .runs import DISTILL, FAST

STEPS = 14
MODULE = {"selected_layers": [4, 5], "reduce_layer": 6, "le_layers": [0, 1, 2, 3, 4, 5]}


@pytest.mark.parametrize(
    ("objective", "term"), [(Objective(language=0.0), "loc_loss"), (DISTILL, "kl_loss")], ids=["boxes", "distillation"]
)
def test_a_short_run_learns_and_its_module_prunes(objective: Objective, term: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"max_steps": STEPS, "save_steps": STEPS, "logging_steps": 1, "learning_rate": 3e-3}
    settings = GlimpseSettings(
        model=zoo.DEFAULT,
        data="scenes:train",
        limit=4 * STEPS,
        out=tmp_path / "out",
        arguments=FAST | arguments | {"per_device_train_batch_size": 4},
    )
    settings = replace(settings, objective=objective, module=MODULE)
    train(settings)
    history = json.loads((last_checkpoint(settings.out) / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if term in entry]
    assert len(losses) == STEPS
    assert mean(losses[-4:]) < mean(losses[:4])
    asker = Asker.load(zoo.DEFAULT, 8)
    samples = scenes.load("val", 2)
    inputs = asker.questions([(sample.images, sample.question) for sample in samples])
    answers = asker.answer(inputs, GlimpsePrune(str(settings.out), max_keep=0.2))
    assert all(answer.text for answer in answers)
    assert answers[0].prefill.keep_ratio < 1
