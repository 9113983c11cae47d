"""Position ids other than the original ones: only needed to reproduce published code that renumbers."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.core.selection import Packed


def renumber(packed: Packed, valid_before: Tensor | None, mode: str, length: int) -> Tensor:
    """`[B, m]` new 1-D positions of the survivors.

    Args:
        mode: `"contiguous"`: 0, 1, 2, ...; `"index"`: place among the real tokens before the drop.
        length: sequence length before the drop.
    """
    rows = packed.index.shape[0]
    if mode == "contiguous":
        real = packed.valid if packed.valid is not None else torch.ones_like(packed.index, dtype=torch.bool)
        return (real.long().cumsum(1) - 1).clamp(min=0)
    if valid_before is None:
        return packed.index
    rank = valid_before.long().cumsum(1) - 1
    return rank.expand(rows, length).gather(1, packed.index).clamp(min=0)
