"""Molmo 2: grids of pooled patches come with the pixels; a video's tokens are those of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.core.grid import Grid
from foveate.families.base import Family
from foveate.families.layout import ImageShape

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
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
            image = modality == "image"
            pixels, grids, pools = (kwargs[name[modality]] for name in (PIXELS, GRIDS, POOLS))
            crops = kwargs[CROPS].tolist() if image else grids[:, 0].tolist()
            tokens = [ImageShape(_parts(modality, row)).size for row in grids.tolist()]
            own_pixels, own_pools = pixels.split(crops), list(pools.split(tokens))
            gone = 0  # patches of images left out so far; pools count the patches of all images
            for number, own in enumerate(own_pools):
                own_pools[number] = torch.where(own >= 0, own - gone, own)
                if number not in numbers:
                    gone += crops[number] * pixels.shape[-2]
            kept = sorted(numbers)
            taken |= {
                PIXELS[modality]: torch.cat([own_pixels[number] for number in kept]) if kept else None,
                GRIDS[modality]: grids[kept] if kept else None,
                POOLS[modality]: torch.cat([own_pools[number] for number in kept]) if kept else None,
            }
            if image:
                taken[CROPS] = kwargs[CROPS][kept] if kept else None
        return taken


def _parts(modality: str, row: Sequence[int]) -> tuple[Grid, ...]:
    if modality == "video":
        return (Grid(*row),)
    low_h, low_w, h, w = row
    return tuple(Grid(1, *part) for part in ((low_h, low_w), (h, w)) if part[0] * part[1])
