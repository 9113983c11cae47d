"""Ernie 4.5 VL: its resampler merges every two frames of a video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from foveate.core.grid import Grid
from foveate.families.base import Family
from foveate.families.layout import ImageShape


class Ernie(Family):
    """Frames are merged behind the tower, which sees each of them; a last one without a partner is left out."""

    model_types = ("ernie4_5_vl_moe",)

    def incoming(self, kwargs: dict[str, Any]) -> dict[str, list[ImageShape]]:
        found = super().incoming(kwargs)
        if "video" in found:
            found["video"] = [ImageShape(tuple(map(self._halved, shape.grids))) for shape in found["video"]]
        return found

    def shape(self, modality: str, size: int, grids: Sequence[Grid], features: Tensor | None = None) -> ImageShape:
        if modality == "video":
            grids = [self._halved(grid) for grid in grids]
        return super().shape(modality, size, grids, features)

    def join(self, shape: ImageShape, grids: Sequence[Grid], values: Sequence[Tensor]) -> Tensor:
        joined = super().join(shape, grids, values)
        (grid,) = grids
        if (short := shape.grids[0]) == grid:
            return joined
        frames = joined.view(grid.t, grid.h * grid.w, *joined.shape[1:])[: 2 * short.t]
        pairs: Tensor = frames.unflatten(0, (short.t, 2)).float().mean(1)
        return pairs.to(joined.dtype).flatten(0, 1)

    def _halved(self, grid: Grid) -> Grid:
        return Grid(max(1, grid.t // 2), grid.h, grid.w)
