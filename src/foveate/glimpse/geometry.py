"""Where visual tokens lie: raster positions, frames and attention windows of merged grids.

A *grid* is `(t, h, w)` in visual tokens, that is after the merger (Qwen2.5-VL: patches / 2 on each side).
Tokens are in raster order, frame after frame, image after image; N is their total number.
Everything is computed on the CPU from plain integers, so nothing here waits for a device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.core.grid import Grid


def token_counts(grids: Sequence[Grid]) -> list[int]:
    """Visual tokens of each image."""
    return [grid.size for grid in grids]


def raster_positions(grids: Sequence[Grid]) -> Tensor:
    """(row, column) of each token inside its frame: int64 [N, 2]."""
    return torch.cat([grid.coordinates()[:, 1:] for grid in grids])


def image_ids(grids: Sequence[Grid]) -> Tensor:
    """Index of the image that each token belongs to: int64 [N]."""
    return torch.repeat_interleave(torch.arange(len(grids)), torch.tensor(token_counts(grids)))


def frame_ids(grids: Sequence[Grid]) -> Tensor:
    """Index of the frame that each token belongs to, counted over all images: int64 [N]."""
    return _consecutive([grid.coordinates()[:, 0] for grid in grids])


def window_ids(grids: Sequence[Grid], window: int) -> Tensor:
    """Index of the attention window of each token, counted over all frames and images: int64 [N].

    `window` is the window's side in merged tokens (Qwen2.5-VL: 112 px / 14 px / 2 = 4); see `Grid.windows`.
    """
    return _consecutive([grid.windows(window) for grid in grids])


def _consecutive(numbers: Sequence[Tensor]) -> Tensor:
    """Joins numberings that each begin at 0, every one going on where the one before it ends."""
    counts = torch.tensor([0] + [int(ids.max()) + 1 for ids in numbers[:-1]])
    return torch.cat([ids + start for ids, start in zip(numbers, counts.cumsum(0), strict=True)])
