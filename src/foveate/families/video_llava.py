"""Video-LLaVA: towers for images and for videos, whose class tokens may be visual tokens too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from foveate.core.grid import Grid
from foveate.families.base import Family
from foveate.families.layout import ImageShape
from foveate.families.tables import side


class VideoLlava(Family):
    """Sizes are known before anything is encoded. A feature tensor is a frame where features come ahead, a whole video
    where frames come with the call."""

    model_types = ("video_llava",)

    def incoming(self, kwargs: dict[str, Any]) -> dict[str, list[ImageShape]]:
        found = {}
        images, videos = kwargs.get("pixel_values_images"), kwargs.get("pixel_values_videos")
        if isinstance(images, Tensor):
            found["image"] = [self._frames(1, images)] * images.shape[0]
        if isinstance(videos, Tensor):
            found["video"] = [self._frames(videos.shape[1], videos)] * videos.shape[0]
        return found

    def _frames(self, count: int, pixels: Tensor) -> ImageShape:
        patch = side(self.config.vision_config.patch_size)
        grid = Grid(count, pixels.shape[-2] // patch, pixels.shape[-1] // patch)
        one = grid.h * grid.w
        whole = self.config.vision_feature_select_strategy == "full"
        return ImageShape((grid,), tuple(range(0, count * (one + 1), one + 1)) if whole else ())

    def tower_counts(self, modality: str, shape: ImageShape, grids: Sequence[Grid]) -> Sequence[int]:
        return [shape.grids[0].t]
