"""Every method runs in bfloat16."""

from __future__ import annotations

import copy

import pytest
import torch

import foveate
from foveate.methods import registry
from tests.test_matrix import configured
from tests.tiny import FAMILIES, make_tiny


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_method_runs_in_bfloat16(family: str) -> None:
    tiny = make_tiny(family)
    model = copy.deepcopy(tiny.model).to(torch.bfloat16)
    inputs = tiny.batch([[3, (4, 4), 5], [2, (4, 6), 3, (2, 4), 4]])
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    for name in registry():
        method = configured(name, 1 / 3, tiny)
        with foveate.prune(model, method) as trace, torch.no_grad():
            logits = model(**inputs).logits
        assert logits.dtype == torch.bfloat16
        assert torch.isfinite(logits).all(), name
        assert 0 < trace.keep_ratio < 1, name
