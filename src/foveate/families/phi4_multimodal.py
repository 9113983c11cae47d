"""Phi-4 multimodal: crops stitched together, then the whole picture; a token behind every row and one between both."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from foveate.core.grid import Grid
from foveate.families.base import Family
from foveate.families.layout import ImageShape
from foveate.families.tables import side

BESIDE = ("image_pixel_values", "image_sizes", "image_attention_mask")
"""Arguments that come with one entry an image."""


class Phi4Multimodal(Family):
    """Its language model encodes the images itself, so nothing of its tower is known when tokens are chosen."""

    model_types = ("phi4_multimodal",)

    def incoming(self, kwargs: dict[str, Any]) -> dict[str, list[ImageShape]]:
        seen, sizes = kwargs.get("image_attention_mask"), kwargs.get("image_sizes")
        if kwargs.get("image_pixel_values") is None or seen is None or sizes is None:
            return {}
        return {"image": [self._shape(mask, *size) for mask, size in zip(seen.cpu(), sizes.tolist(), strict=True)]}

    def _shape(self, seen: Tensor, height: int, width: int) -> ImageShape:
        """Of a picture of so many pixels.

        Args:
            seen: `[crops, rows, columns]` which patches are no padding; the first crop is the whole picture.
        """
        vision = self.config.vision_config
        down, across = height // vision.crop_size, width // vision.crop_size
        own = side(vision.image_size) // side(vision.patch_size) // 2  # patches are pooled
        real = seen[1 : down * across + 1, ::2, ::2].reshape(down, across, own, own).transpose(1, 2)
        real = real.reshape(down * own, across * own)
        grids = Grid(1, int(real[:, 0].sum()), int(real[0].sum())), Grid(1, own, own)
        fixed, start = list[int](), 0
        for grid in grids:
            line = grid.w + 1
            fixed += [start + row * line + grid.w for row in range(grid.h)]
            start += grid.h * line
            fixed.append(start)  # between the two
            start += 1
        return ImageShape(grids, tuple(fixed[:-1]))

    def take(self, kwargs: dict[str, Any], chosen: dict[str, list[int]]) -> dict[str, Any]:
        numbers = chosen["image"]
        return {name: kwargs[name][numbers] if numbers else None for name in BESIDE if kwargs.get(name) is not None}
