"""MiniCPM-V: patches are merged once within the tower, in windows, and once behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from foveate.core.grid import Grid
from foveate.core.view import Tap
from foveate.families.base import Family
from foveate.families.merging import merge_patches


class MiniCpmV(Family):
    """How many patches make a token depends on the block that is read and on the call."""

    model_types = ("minicpmv4_6", "minicpmv4_7", "minicpm_ocr")

    def tower_grids(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Grid]:
        given = dict(zip(("pixel_values", "target_sizes", "use_vit_merger"), args, strict=False)) | kwargs
        side = 4 if given.get("use_vit_merger", True) else 2
        return [Grid(1, h // side, w // side) for h, w in given["target_sizes"].tolist()]

    def to_tokens(self, tap: Tap, values: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        received = tap.kind == "received"
        rows = values.reshape(-1, 1) if received else values.reshape(-1, values.shape[-1])
        factor = round((len(rows) / sum(grid.size for grid in grids)) ** 0.5)  # four by four before the merger
        own = rows.split([grid.size * factor**2 for grid in grids])
        found = [merge_patches(row, grid, factor, "raster", 0) for row, grid in zip(own, grids, strict=True)]
        return [value.squeeze(-1) for value in found] if received else found
