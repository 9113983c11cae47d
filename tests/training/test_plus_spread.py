"""Rollouts pruned by a module with a spread: it looks before the language model, and drops nothing there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import foveate
from foveate.glimpse import GlimpseModule
from foveate.methods import GlimpsePrune
from foveate.training.evidence import RowwiseGlimpse
from tests.tiny import FAMILIES, make_tiny


def kept(tiny: Any, method: foveate.Method) -> list[tuple[int, int]]:
    """Layer of every stage, and what it left of the first image."""
    with foveate.prune(tiny.model, method) as trace, torch.no_grad():
        tiny.model(**tiny.batch([[3, (4, 4), 5]]))
    return [(step.layer, len(step.alive)) for step in trace.last.groups[0].steps]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_rows_with_boxes_and_rows_without(family: str) -> None:
    tiny = make_tiny(family, "sdpa")
    torch.manual_seed(0)
    plain = GlimpseModule.for_model(tiny.model).eval()
    module = GlimpseModule(replace(plain.config, spread=3.0)).eval()
    module.load_state_dict(plain.state_dict())
    boxes = [[(0.0, 0.0, 0.5, 0.5)]]
    alone = kept(tiny, RowwiseGlimpse(plain, boxes=[boxes]))
    assert kept(tiny, RowwiseGlimpse(module, boxes=[boxes])) == [(0, 16), *alone]
    assert kept(tiny, RowwiseGlimpse(module)) == kept(tiny, GlimpsePrune(module))
    assert kept(tiny, RowwiseGlimpse(module, thresholds=[0.5])) == kept(tiny, GlimpsePrune(module, threshold=0.5))
