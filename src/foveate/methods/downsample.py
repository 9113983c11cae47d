"""Downsample: area-pool the visual grid, the baseline that many papers lose to."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.method import Method
from foveate.core.selection import Choice, Merge, Selection
from foveate.core.view import View


@dataclass(frozen=True)
class Downsample(Method):
    """Divides the grid into rectangles of nearly equal size and replaces each by the mean of its tokens.

    The mean stands at the position of the rectangle's middle token.

    Args:
        keep: share of the tokens that remain, in (0, 1], or their number per image.
    """

    verified = "by its tests"
    takes_prompt = False

    def choose(self, view: View, count: int) -> Choice:
        frames, height, width = view.grid
        rows, cols = coarse_grid(height, width, max(1, count // frames))
        frame, row, col = view.positions().unbind(1)
        cell = (frame * rows + row * rows // height) * cols + col * cols // width
        return pool(cell, frames * rows * cols)


def coarse_grid(height: int, width: int, budget: int) -> tuple[int, int]:
    """Rows and columns of the largest grid with at most `budget` cells and about the image's aspect ratio."""
    rows = min(height, max(1, round(math.sqrt(budget * height / width))))
    rows = min(rows, budget)
    cols = min(width, budget // rows)
    return min(height, max(rows, budget // cols)), cols


def pool(cell: Tensor, cells: int) -> Selection:
    """Average tokens by cell `[n]` (0..cells-1, none empty); each mean stands at its cell's middle token."""
    size = torch.zeros(cells, dtype=torch.long, device=cell.device).index_add_(0, cell, torch.ones_like(cell))
    order = cell.argsort(stable=True)
    middle = order[size.cumsum(0) - size + size // 2]
    index, rank = middle.sort()
    target = torch.empty_like(rank).index_copy_(0, rank, torch.arange(cells, device=cell.device))
    source = torch.arange(len(cell), device=cell.device)
    return Selection(len(cell), index, Merge(target, cell, source, 1 / size[cell].float()))
