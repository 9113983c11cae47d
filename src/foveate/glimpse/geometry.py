"""Where visual tokens lie: raster positions, frames and attention windows of merged grids.

A *grid* is `(t, h, w)` in visual tokens, that is after the merger (Qwen2.5-VL: patches / 2 on each side).
Tokens are in raster order, frame after frame, image after image; N is their total number.
Everything is computed on the CPU from plain integers, so nothing here waits for a device.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Grid = tuple[int, int, int]


def token_counts(grids: Sequence[Grid]) -> list[int]:
    """Visual tokens of each image."""
    return [t * h * w for t, h, w in grids]


def raster_positions(grids: Sequence[Grid]) -> Tensor:
    """(row, column) of each token inside its frame: int64 [N, 2]."""

    def one(grid: Grid) -> Tensor:
        t, h, w = grid
        return torch.cartesian_prod(torch.arange(h), torch.arange(w)).view(-1, 2).repeat(t, 1)

    return torch.cat([one(grid) for grid in grids])


def image_ids(grids: Sequence[Grid]) -> Tensor:
    """Index of the image that each token belongs to: int64 [N]."""
    return torch.repeat_interleave(torch.arange(len(grids)), torch.tensor(token_counts(grids)))


def frame_ids(grids: Sequence[Grid]) -> Tensor:
    """Index of the frame that each token belongs to, counted over all images: int64 [N]."""
    return _numbered(grids, lambda positions, grid: (torch.zeros(len(positions), dtype=torch.long), 1))


def window_ids(grids: Sequence[Grid], window: int) -> Tensor:
    """Index of the square attention window of each token, counted over all frames: int64 [N].

    `window` is the window's side in merged tokens (Qwen2.5-VL: 112 px / 14 px / 2 = 4). Windows are cut from
    the top left corner of a frame, so those at the right and bottom edge may be smaller.
    """

    def cells(positions: Tensor, grid: Grid) -> tuple[Tensor, int]:
        across = -(-grid[2] // window)
        rows, columns = (positions // window).unbind(1)
        return rows * across + columns, -(-grid[1] // window) * across

    return _numbered(grids, cells)


def _numbered(grids: Sequence[Grid], cells: Callable[[Tensor, Grid], tuple[Tensor, int]]) -> Tensor:
    """Give every frame its own range of numbers; `cells` returns one frame's cells and their count."""
    ids, start = [], 0
    for t, h, w in grids:
        cell, count = cells(raster_positions([(1, h, w)]), (1, h, w))
        ids.append((start + torch.arange(t)[:, None] * count + cell).flatten())
        start += t * count
    return torch.cat(ids)
