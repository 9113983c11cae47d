"""Lists of small tensors."""

from __future__ import annotations

import torch

from foveate.bench.operations import counting
from foveate.core.host import listed


def test_a_tensor_is_waited_for_once_until_it_changes() -> None:
    grid = torch.tensor([[1, 4, 6]])
    with counting() as counts:
        assert listed(grid) == listed(grid) == [[1, 4, 6]]
    assert counts.waits <= 1
    grid[0, 1] = 8
    assert listed(grid) == [[1, 8, 6]]


def test_another_tensor_is_read_anew() -> None:
    for number in range(100):  # ids of dead tensors come again
        assert listed(torch.tensor([number])) == [number]
    with torch.inference_mode():
        assert listed(torch.tensor([3])) == [3]
