"""Model types that a glimpse module can be trained for, and those that are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import foveate
from foveate.errors import UnsupportedModelError
from foveate.glimpse import GlimpseModule
from foveate.methods.glimpse_prune import GlimpsePrune
from foveate.training.glimpse.model import GlimpseForTraining
from foveate.training.glimpse.objectives import Objective, gated, unpruned
from foveate.training.losses import IGNORE
from tests.families.tiny import TABLE, build
from tests.families.types import *  # noqa: F403 - fills the table

ROWS = [[4, ("image", 4, 4), 6], [3, ("image", 4, 4), 9]]
TRAINED = ["llava_next", "internvl", "mistral3", "llama4", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v"]


def answered(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Prompts, and the same with answers behind them."""
    prompts = TABLE[name].batch(ROWS)
    answer = torch.randint(5, 59, (len(ROWS), 3), generator=torch.Generator().manual_seed(4))
    ids = torch.cat([prompts["input_ids"], answer], 1)
    mask = F.pad(prompts["attention_mask"], (0, 3), value=1)
    return prompts, {**prompts, "input_ids": ids, "attention_mask": mask, **TABLE[name].types(ids)}


@pytest.mark.parametrize("name", TRAINED)
def test_training_sees_what_the_model_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher and a student under open gates are stock; the predictor sees what it sees in pruned inference."""
    model = build(name)
    prompts, batch = answered(name)
    torch.manual_seed(1)
    module = GlimpseModule.for_model(model, le_dropout=0.0)
    assert module.config.reduce_layer < module.config.num_hidden_layers - 1
    seen: list[Tensor] = []
    stock = GlimpsePrune.logits
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(GlimpsePrune, "logits", lambda self, view: seen.append(stock(self, view)) or seen[-1])
        with foveate.prune(model, GlimpsePrune(module.eval(), threshold=0.5)):
            model(**prompts, use_cache=False)
        expected = model(**batch).logits[:, -4:-1].flatten(0, 1)
    batch["labels"] = F.pad(batch["input_ids"][:, -3:], (prompts["input_ids"].shape[1], 0), value=IGNORE)
    with GlimpseForTraining(model, module, Objective(localization=0, distillation=1.0)) as training:
        outcome = training.train().outcome(**batch)
        outcome.total.backward()
        teacher, _ = unpruned(training._frozen, outcome.prompts, outcome.read)
        open_gates = [torch.zeros(n) for n in outcome.prompts.counts]
        student, _ = gated(training._frozen, outcome.prompts, outcome.read, open_gates)
    for ours, theirs in zip(outcome.logits, seen, strict=True):
        torch.testing.assert_close(ours[-1], theirs, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(teacher, expected, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(student, expected, atol=2e-4, rtol=1e-4)
    assert module.embeddings.grad is not None
    assert module.embeddings.grad.abs().max() > 0


@pytest.mark.parametrize(("name", "why"), [("qwen3_5", "recurrent"), ("lfm2_vl", "recurrent"), ("gemma3", "masks")])
def test_what_cannot_be_trained_is_refused_by_name(name: str, why: str) -> None:
    model = build(name)
    prompts, batch = answered(name)
    batch["labels"] = F.pad(batch["input_ids"][:, -3:], (prompts["input_ids"].shape[1], 0), value=IGNORE)

    def train() -> None:
        with GlimpseForTraining(model, GlimpseModule.for_model(model), Objective(localization=0)) as training:
            training.train().outcome(**batch)

    with pytest.raises(UnsupportedModelError, match=f"'{name}.*{why}"):
        train()
