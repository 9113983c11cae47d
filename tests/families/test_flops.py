"""Operation counts of every model type against torch's counter."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import foveate
from foveate.bench.flops import FUSED, count, vision_flops
from foveate.families import adapt
from foveate.families.geometry import Geometry
from tests.families.reference import rows_of
from tests.families.test_types import FEW
from tests.families.tiny import build
from tests.families.types import TABLE
from tests.reference import Drop

NEW = 3
REFUSED = {"ernie4_5_vl_moe"}
"""Experts for text and images of different sizes; `tests/bench` sees it refused."""


def eager(name: str) -> Any:
    """A model all of whose products torch's counter sees: it does not know grouped ones."""
    model = copy.deepcopy(build(name, "eager"))
    model.set_experts_implementation("eager")
    for parameter in model.parameters():  # the counter's tracker of modules would follow gradients
        parameter.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    "name",
    [n if n in FEW else pytest.param(n, marks=pytest.mark.families) for n in sorted(TABLE) if n not in REFUSED],
)
@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_operations_are_those_of_the_counter(name: str, keep: float) -> None:
    model = eager(name)
    family = adapt(model)
    inputs = TABLE[name].batch([rows_of("image")[1]] * 2)  # no padding, which the counter would count
    counter = FlopCounterMode(display=False, custom_mapping=FUSED)
    method = None if keep == 1.0 else Drop((0, 2), keep)
    with torch.no_grad(), foveate.prune(model, method) as trace, counter:
        model.generate(**inputs, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    vision = vision_flops(family, inputs)
    found = count(Geometry.of(family), trace.last, NEW, vision)
    assert found.total == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert vision == pytest.approx(vision_flops(adapt(build(name)), inputs), rel=1e-9)  # fused attention is counted too
