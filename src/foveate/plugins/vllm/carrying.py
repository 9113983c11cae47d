"""Whole numbers in columns of features, exact in every floating-point type that models run in."""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 128
"""bfloat16 holds whole numbers up to 256."""


def digits(numbers: Tensor) -> Tensor:
    """`[n, 2 * k]` digits of `[n, k]` numbers, which are at least 0 and below `BASE**2`."""
    return torch.cat([numbers % BASE, numbers // BASE], dim=1)


def numbers(columns: Tensor) -> Tensor:
    """`[n, k]` numbers (int64) of `[n, 2 * k]` digits."""
    low, high = columns.round().long().chunk(2, dim=1)
    return low + BASE * high
