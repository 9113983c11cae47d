"""Whatever runs along the unpruned sequence, for the tokens alive: rotary embeddings, token types, per-layer inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveate.core.selection import pick


def aligned(value: Any, index: Tensor, length: int) -> Any:
    """`value` at the tokens `index`; unchanged where no dimension of it runs along the sequence.

    Args:
        value: a layer's argument: a tensor, or tuples, lists and dictionaries of them.
        index: `[B, m]` columns of the unpruned rows, no padding entries below 0.
        length: tokens of an unpruned row.
    """
    if isinstance(value, tuple | list):
        return type(value)(aligned(item, index, length) for item in value)
    if isinstance(value, dict):
        return {key: aligned(item, index, length) for key, item in value.items()}
    if not isinstance(value, Tensor):
        return value
    found = _sequence_dims(value.shape, index.shape[0], length)
    if found is not None:
        return pick(value, index, *found)
    if value.dim() == 1 and value.shape[0] == length and index.shape[0] == 1:
        return value[index[0].to(value.device)]
    return value


def _sequence_dims(shape: torch.Size, rows: int, length: int) -> tuple[int, int] | None:
    """(batch, sequence) dimensions of a tensor that runs along the sequence."""
    if len(shape) >= 3 and shape[-2] == length and shape[-3] in (1, rows):
        return -3, -2
    if len(shape) >= 2 and shape[-1] == length and shape[-2] in (1, rows):
        return -2, -1
    if len(shape) >= 3 and shape[1] == length and shape[0] in (1, rows):
        return 0, 1
    return None
