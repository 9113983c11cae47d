"""From values per patch, as a tower orders them, to values per token of the language model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.core.grid import Grid
from foveate.families.tables import Merge


def per_image(values: Tensor, patches: Sequence[int], class_first: bool) -> list[Tensor]:
    """`[patches, D]` of every image (or tile), without class and padding tokens.

    Args:
        values: `[B, S, D]`: an image per row, or `[1, S, D]` or `[S, D]` with all images behind one another.
        patches: of every image.
        class_first: tokens besides the patches stand before them; else (class token last, padding) behind them.
    """
    if values.dim() == 2:
        values = values[None]
    if values.shape[0] == 1 and values.shape[1] == sum(patches):
        return list(values[0].split(list(patches)))
    starts = [values.shape[1] - n if class_first else 0 for n in patches]
    return [row[start : start + n] for row, start, n in zip(values, starts, patches, strict=True)]


def merge_patches(values: Tensor, grid: Grid, factor: int, merge: Merge, window: int) -> Tensor:
    """Means over the patches of every token, in the order of the grid.

    Args:
        values: `[t * h * w * factor**2, D]` in the tower's order.
        grid: in tokens.
        window: side of an attention window in tokens (`windowed` only).
    """
    if merge in ("raster", "unpad"):
        t, h, w = grid
        blocks = values.reshape(t, h, factor, w, factor, values.shape[-1]).mean((2, 4))
        return (blocks.transpose(1, 2) if grid.by_columns else blocks).flatten(0, 2)
    units: Tensor = values.unflatten(0, (-1, factor**2)).mean(1)
    if merge == "units":
        return units
    order = grid.windows(window).argsort(stable=True).to(units.device)
    return torch.empty_like(units).index_copy_(0, order, units)
