"""Perception LM: equal tiles of an image, frames of a video, pooled; its tower is timm's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from foveate.core.grid import Grid
from foveate.families.base import Family
from foveate.families.layout import ImageShape
from foveate.families.tables import side


class PerceptionLM(Family):
    """Stock code encodes videos within the call, so their sizes follow from the pixels."""

    model_types = ("perception_lm",)

    def incoming(self, kwargs: dict[str, Any]) -> dict[str, list[ImageShape]]:
        found = {}
        images, videos = kwargs.get("pixel_values"), kwargs.get("pixel_values_videos")
        if isinstance(images, Tensor):
            found["image"] = [ImageShape((self._tile(images),) * images.shape[1])] * images.shape[0]
        if isinstance(videos, Tensor):
            tile = self._tile(videos)
            found["video"] = [ImageShape((Grid(videos.shape[1], tile.h, tile.w),))] * videos.shape[0]
        return found

    def _tile(self, pixels: Tensor) -> Grid:
        tower: Any = self.parts.tower
        patch = side(tower.timm_model.patch_embed.patch_size) * self.config.projector_pooling_ratio
        return Grid(1, pixels.shape[-2] // patch, pixels.shape[-1] // patch)
