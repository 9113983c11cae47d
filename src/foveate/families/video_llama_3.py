"""VideoLLaMA 3: how many patches make a token is said in each call, apart for images and videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from foveate.core.grid import Grid
from foveate.core.view import Tap
from foveate.families.base import Family
from foveate.families.layout import ImageShape
from foveate.families.merging import merge_patches
from foveate.families.probed import GRID_NAMES


class VideoLlama3(Family):
    """Merge sizes come with the pixels."""

    model_types = ("video_llama_3",)

    def incoming(self, kwargs: dict[str, Any]) -> dict[str, list[ImageShape]]:
        return {
            modality: [ImageShape((grid,)) for grid in _grids(kwargs[name], kwargs[f"{modality}_merge_sizes"])]
            for modality in self.given(kwargs)
            if (name := GRID_NAMES[modality]) in kwargs and kwargs.get(f"{modality}_merge_sizes") is not None
        }

    def tower_grids(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Grid]:
        given = dict(zip(("pixel_values", "grid_thw", "merge_sizes"), args, strict=False)) | kwargs
        return _grids(given["grid_thw"], given["merge_sizes"])

    def tower_patches(self, args: tuple[Any, ...], kwargs: dict[str, Any], grids: Sequence[Grid]) -> list[int]:
        given = dict(zip(("pixel_values", "grid_thw", "merge_sizes"), args, strict=False)) | kwargs
        return [int(n) for n in given["grid_thw"].prod(-1)]

    def to_tokens(self, tap: Tap, values: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        rows = values.reshape(-1, 1) if tap.kind == "received" else values.reshape(-1, values.shape[-1])
        factor = round((len(rows) / sum(grid.size for grid in grids)) ** 0.5)  # one kind of input a call
        own = rows.split([grid.size * factor**2 for grid in grids])
        found = [merge_patches(row, grid, factor, self.merge, 0) for row, grid in zip(own, grids, strict=True)]
        return [value.squeeze(-1) for value in found] if tap.kind == "received" else found


def _grids(thw: Tensor, merges: Tensor) -> list[Grid]:
    return [Grid(t, h // m, w // m) for (t, h, w), m in zip(thw.tolist(), merges.tolist(), strict=True)]
