"""What pruning costs, counted in tensor operations: counts do not depend on the machine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import foveate
from foveate.methods import ViTCoPDiverse
from tests.test_matrix import configured
from tests.tiny import make_tiny


class Count(TorchDispatchMode):
    """Operations that reach the dispatcher, views included."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        return func(*args, **(kwargs or {}))


def decoding(model: Any, inputs: dict[str, torch.Tensor]) -> int:
    """Operations of one more token: those of six new tokens less those of five."""
    counts = []
    for steps in (6, 5):
        with Count() as count, torch.no_grad():
            model.generate(**inputs, max_new_tokens=steps, do_sample=False)
        counts.append(count.operations)
    return counts[0] - counts[1]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", [[[3, (4, 4), 5]], [[3, (4, 4), 5], [9, (4, 4), 2]]], ids=["one", "padded"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("name", ["vitcop", "glimpse_prune", "fastv", "visionzip"])
def test_a_decoded_token_costs_a_handful_of_operations(name: str, family: str, rows: Any, attention: str) -> None:
    tiny = make_tiny(family, attention)
    inputs = tiny.batch(rows)
    stock = decoding(tiny.model, inputs)
    with foveate.prune(tiny.model, configured(name, 0.5, tiny)):
        assert decoding(tiny.model, inputs) <= stock + 8
    with foveate.prune(tiny.model, None):
        assert decoding(tiny.model, inputs) <= stock + 3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", [[[3, (4, 4), 5]], [[3, (4, 4), 5], [9, (4, 4), 2]]], ids=["one", "padded"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_proportional_attention_costs_a_few_more(family: str, rows: Any, attention: str) -> None:
    """A mask for each of the three parts that layers with the same tokens make, not one a layer."""
    tiny = make_tiny(family, attention)
    inputs = tiny.batch(rows)
    stock = decoding(tiny.model, inputs)
    with foveate.prune(tiny.model, ViTCoPDiverse(0.5, proportional=True)):
        assert decoding(tiny.model, inputs) <= stock + 20
