"""Every method on a type of every kind: it prunes as the trace says, or says why it cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foveate
from foveate.core.tower_method import TowerMethod
from foveate.errors import ConfigurationError, MissingTapError, UnsupportedModelError
from foveate.families import adapt
from foveate.families.tower_layouts import check_prunable
from foveate.methods import registry
from tests.families.reference import close, generate, masked_logits, rows_of
from tests.families.test_types import FEW, TOLERANCE
from tests.families.tiny import build
from tests.families.types import TABLE

pytestmark = pytest.mark.families


def configured(name: str, keep: float, model: Any) -> Any:
    kind = registry()[name]
    return kind.example(keep, model) if hasattr(kind, "example") else kind(keep=keep)


def in_tower(method: Any) -> bool:
    return isinstance(method, TowerMethod)


def refused(method: Any, model: Any) -> bool:
    """Whether the model cannot give what the method reads, which must be said before anything runs."""
    info, family = adapt(model).info, adapt(model)
    if in_tower(method):
        try:
            check_prunable(family)
        except MissingTapError:
            return True
    reads = [stage.layer for stage in method.stages(info) if stage.reads != "nothing" and stage.layer]
    if any(info.reading_layer(layer) is None for layer in reads):
        return True
    return bool(method.taps(info)) and family.unreadable is not None and not method.takes_features


UNREADABLE = ("idefics2", "fuyu", "phi4_multimodal")
"""Types whose tower cannot be read: a resampler, no tower, one that runs too late."""


@pytest.mark.parametrize("family", [*FEW, *UNREADABLE])
@pytest.mark.parametrize("name", list(registry()))
def test_a_method_prunes_or_says_why_not(name: str, family: str) -> None:
    model, entry = build(family), TABLE[family]
    inputs = entry.batch(rows_of("image"))
    try:
        method = configured(name, 0.7, model)
    except UnsupportedModelError:
        assert (name, family) == ("glimpse_prune", "fuyu")  # no tower, so no features for its predictor
        return
    if refused(method, model):
        with pytest.raises((MissingTapError, ConfigurationError)), foveate.prune(model, method):
            pass
        return
    with foveate.prune(model, method) as trace:
        tokens, logits, _ = generate(model, inputs, 3)
    seen = trace.to_dict()
    stands_in = bool(method.taps(adapt(model).info)) and family in UNREADABLE
    assert any("projected features stand in" in note for note in trace.notes) == stands_in
    assert torch.isfinite(logits).all()
    assert 0 < seen["keep_ratio"] < 1
    compact = any(stage.compact_earlier for stage in method.stages(adapt(model).info))
    # what is dropped in the tower changes the features of what is left, which has an oracle of its own
    if entry.exact and not in_tower(method) and not compact and not any(row["merges"] for row in seen["rows"]):
        assert close(logits, masked_logits(model, entry, inputs, seen, tokens)) < TOLERANCE
