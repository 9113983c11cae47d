"""From values per patch, as a tower orders them, to values per token of the language model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.core.grid import Grid
from foveate.families.tables import Merge


def per_image(values: Tensor, patches: Sequence[int], class_last: bool) -> list[Tensor]:
    """`[patches, D]` of every image (or tile), without class and padding tokens.

    Args:
        values: `[B, S, D]`: an image per row, or `[1, S, D]` or `[S, D]` with all images behind one another.
        patches: of every image.
        class_last: tokens besides the patches stand behind them.
    """
    if values.dim() == 2:
        values = values[None]
    if values.shape[0] == 1 and values.shape[1] == sum(patches):
        return list(values[0].split(list(patches)))
    if class_last:
        return [row[:n] for row, n in zip(values, patches, strict=True)]
    return [row[row.shape[0] - n :] for row, n in zip(values, patches, strict=True)]


def merge_patches(values: Tensor, grid: Grid, factor: int, merge: Merge, window: int) -> Tensor:
    """Means over the patches of every token, in raster order.

    Args:
        values: `[t * h * w * factor**2, D]` in the tower's order.
        grid: in tokens.
        window: side of an attention window in tokens (`windowed` only).
    """
    if merge == "raster":
        t, h, w = grid
        blocks = values.view(t, h, factor, w, factor, values.shape[-1])
        return blocks.mean((2, 4)).flatten(0, 2) if factor > 1 else values
    units = values.unflatten(0, (-1, factor**2)).mean(1)
    if merge == "units":
        return units
    order = grid.windows(window).argsort(stable=True).to(units.device)
    return torch.empty_like(units).index_copy_(0, order, units)
