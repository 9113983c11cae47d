"""Predictive coding of a picture in blocks (PixelPrune, arXiv 2604.00886): which blocks their neighbours foretell."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from foveate.core.grid import Grid


def unpredicted(blocks: Tensor, grid: Grid, tolerance: float) -> Tensor:
    """`[t * h * w]` bool: which blocks differ from their prediction and must be kept.

    Frames are coded by themselves, in raster order. The first block has no prediction, others of the first row are
    predicted by the block to their left A, of the first column by the one above B; the rest by B where the block
    between both, C, is close to A and not to B, else by A. Close is a largest difference of at most `tolerance`. A
    predicted block is replaced by its prediction, so that errors do not add up: every dropped block is within
    `tolerance` of a kept one.

    Args:
        blocks: `[t * h * w, P]` in raster order.
    """
    if tolerance == 0:
        return _exact(blocks.unflatten(0, tuple(grid))).flatten()
    values = blocks.float().cpu().numpy()
    frames = values.reshape(grid.t, grid.h * grid.w, -1)
    kept = np.concatenate([_anchored(frame, grid.w, tolerance) for frame in frames])
    return torch.from_numpy(kept).to(blocks.device)


def _exact(x: Tensor) -> Tensor:
    """`[t, h, w]`; a block that is dropped equals its prediction, so all neighbours are as they were."""
    along, down = (x[:, :, 1:] == x[:, :, :-1]).all(-1), (x[:, 1:] == x[:, :-1]).all(-1)
    kept = torch.ones(x.shape[:3], dtype=torch.bool, device=x.device)
    kept[:, 0, 1:] = ~along[:, 0]
    kept[:, 1:, 0] = ~down[:, :, 0]
    from_above = down[:, :, :-1] & ~along[:, :-1]  # C equals A, C does not equal B
    kept[:, 1:, 1:] = ~torch.where(from_above, down[:, :, 1:], along[:, 1:])
    return kept


def _anchored(blocks: np.ndarray, width: int, tolerance: float) -> np.ndarray:
    """`[h * w]` of one frame; `anchor` is the kept block that stands at each place."""
    anchor = np.arange(len(blocks))
    known: dict[tuple[int, int], bool] = {}

    def close(a: int, b: int) -> bool:
        if a != b and (a, b) not in known:
            known[a, b] = bool(np.abs(blocks[a] - blocks[b]).max() <= tolerance)
        return a == b or known[a, b]

    for place in range(1, len(blocks)):
        if place < width:
            prediction = anchor[place - 1]
        elif place % width == 0:
            prediction = anchor[place - width]
        else:
            left, above, between = anchor[place - 1], anchor[place - width], anchor[place - width - 1]
            prediction = above if close(between, left) and not close(between, above) else left
        if close(place, int(prediction)):
            anchor[place] = prediction
    kept: np.ndarray = anchor == np.arange(len(blocks))
    return kept
