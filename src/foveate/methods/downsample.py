"""Downsample: area-pool the visual grid, the baseline that many papers lose to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.method import Method
from foveate.core.selection import Choice, Merge, Selection
from foveate.core.view import View


@dataclass(frozen=True)
class Downsample(Method):
    """Divides the grid into rectangles of nearly equal size and replaces each by the mean of its tokens. An image in
    tiles has several grids; each gets its share of the budget.

    The mean stands at the position of the rectangle's middle token.

    Args:
        keep: share of the tokens that remain, in (0, 1], or their number per image.
    """

    verified = "by its tests"
    takes_prompt = False

    def choose(self, view: View, count: int) -> Choice:
        frame, row, col = view.positions().unbind(1)
        shares = proportional([grid.size for grid in view.grids], count)
        coarse = [coarse_grid(h, w, max(1, n // t)) for (t, h, w), n in zip(view.grids, shares, strict=True)]
        cells = [grid.t * rows * cols for grid, (rows, cols) in zip(view.grids, coarse, strict=True)]
        table = [
            (grid.h, grid.w, rows, cols, sum(cells[:number]))
            for number, (grid, (rows, cols)) in enumerate(zip(view.grids, coarse, strict=True))
        ]
        height, width, rows, cols, first = torch.tensor(table, device=view.device)[view.parts()].unbind(1)
        return pool(first + (frame * rows + row * rows // height) * cols + col * cols // width, sum(cells))


def proportional(sizes: Sequence[int], count: int) -> list[int]:
    """`count` divided in proportion to the sizes, at least one each; what rounding leaves goes to the largest."""
    shares = [max(1, count * size // sum(sizes)) for size in sizes]
    shares[sizes.index(max(sizes))] += max(0, count - sum(shares))
    return shares


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
