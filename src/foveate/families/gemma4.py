"""Gemma 4: pictures and frames of any shape as rows of patches with their places, filled up to a common length."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from foveate.core.grid import Grid
from foveate.families.base import Family
from foveate.families.layout import ImageShape

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
PLACES = {"image": "image_position_ids", "video": "video_position_ids"}
FRAMES = "num_frames_per_video"


class Gemma4(Family):
    """Sizes come with the places of patches; the frames of all videos come behind one another."""

    model_types = ("gemma4", "gemma4_unified")

    @cached_property
    def factor(self) -> int:
        """Patches per token along each side; the unified model's are of a token's size."""
        return 1 if self.name == "gemma4_unified" else super().factor

    def tower_grids(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Grid]:
        given = dict(zip(("pixel_values", "image_position_ids"), args, strict=False)) | kwargs
        places = given.get("pixel_position_ids", given.get("image_position_ids"))
        return super().tower_grids((), {"pixel_position_ids": places})

    def incoming(self, kwargs: dict[str, Any]) -> dict[str, list[ImageShape]]:
        found = {}
        for modality in self.given(kwargs):
            places = kwargs.get(PLACES[modality])
            if isinstance(places, Tensor) and (modality == "image" or kwargs.get(FRAMES) is not None):
                grids = self.tower_grids((), {"pixel_position_ids": places})
                counts = kwargs[FRAMES].tolist() if modality == "video" else [1] * len(grids)
                found[modality] = [self._image(modality, list(own)) for own in _split(grids, counts)]
        return found

    def _image(self, modality: str, grids: list[Grid]) -> ImageShape:
        return self.shape(modality, sum(grid.size for grid in grids), grids)

    def take(self, kwargs: dict[str, Any], chosen: dict[str, list[int]]) -> dict[str, Any]:
        taken: dict[str, Any] = {}
        for modality, numbers in chosen.items():
            names = (PIXELS[modality], PLACES[modality])
            if modality == "video":
                counts = kwargs[FRAMES]
                taken[FRAMES] = counts[numbers] if numbers else None
                own = _split(range(int(counts.sum())), counts.tolist())
                numbers = [frame for number in numbers for frame in own[number]]
            index = torch.tensor(numbers, dtype=torch.long)
            taken |= {name: kwargs[name][index.to(kwargs[name].device)] if numbers else None for name in names}
        return taken


def _split(values: Sequence[Any], counts: Sequence[int]) -> list[Sequence[Any]]:
    """Consecutive parts of so many values each."""
    return [values[start:end] for start, end in pairwise(accumulate(counts, initial=0))]
