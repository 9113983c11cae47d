"""Models whose parts are moved by accelerate when they run (device maps, offloading)."""

from __future__ import annotations

import copy

import pytest
import torch

import foveate
from foveate.methods import ViTCoP
from tests.reference import Drop, generate
from tests.tiny import Tiny

accelerate = pytest.importorskip("accelerate")


@pytest.mark.parametrize("method", [Drop((0, 3)), ViTCoP(0.3)], ids=str)
def test_offloaded_weights(tiny: Tiny, method: foveate.Method) -> None:
    """Every layer's inputs are aligned by a hook that runs after ours, as with several GPUs."""
    inputs = tiny.batch([[3, (4, 4), 5], [2, (4, 6), 3, (2, 4), 4]])
    with foveate.prune(tiny.model, method):
        expected = generate(tiny.model, inputs, 3)
    spread = accelerate.cpu_offload(copy.deepcopy(tiny.model), execution_device=torch.device("cpu"))
    with foveate.prune(spread, method):
        found = generate(spread, inputs, 3)
    assert torch.equal(found[0], expected[0])
    assert torch.allclose(found[1], expected[1], atol=1e-6)
