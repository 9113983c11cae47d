"""Molmo 2: grids of pooled patches come with the pixels; a video's tokens are those of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.core.grid import Grid
from foveate.families.base import Family
from foveate.families.layout import ImageShape

GRIDS = {"image": "image_grids", "video": "video_grids"}
POOLS = {"image": "image_token_pooling", "video": "video_token_pooling"}
CROPS = "image_num_crops"


class Molmo2(Family):
    """A picture is the whole at a low resolution, then its crops; videos are frames at the low one."""

    model_types = ("molmo2",)

    def incoming(self, kwargs: dict[str, Any]) -> dict[str, list[ImageShape]]:
        return {
            modality: [ImageShape(_parts(modality, row)) for row in kwargs[GRIDS[modality]].tolist()]
            for modality in self.given(kwargs)
            if isinstance(kwargs.get(GRIDS[modality]), Tensor)
        }

    def take(self, kwargs: dict[str, Any], chosen: dict[str, list[int]]) -> dict[str, Any]:
        taken: dict[str, Any] = {}
        for modality, numbers in chosen.items():
            pixels = "pixel_values" if modality == "image" else "pixel_values_videos"
            names = (pixels, GRIDS[modality], POOLS[modality])
            grids = kwargs[GRIDS[modality]]
            tokens = [ImageShape(_parts(modality, row)).size for row in grids.tolist()]
            crops = kwargs[CROPS].tolist() if modality == "image" else grids[:, 0].tolist()
            parts = zip(kwargs[pixels].split(crops), grids.split(1), kwargs[POOLS[modality]].split(tokens), strict=True)
            own = [part for number, part in enumerate(parts) if number in numbers]
            taken |= (
                dict(zip(names, map(torch.cat, zip(*own, strict=True)), strict=True)) if own else dict.fromkeys(names)
            )
        return taken


def _parts(modality: str, row: Sequence[int]) -> tuple[Grid, ...]:
    if modality == "video":
        return (Grid(*row),)
    low_h, low_w, h, w = row
    return tuple(Grid(1, *part) for part in ((low_h, low_w), (h, w)) if part[0] * part[1])
