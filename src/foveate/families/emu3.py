"""Emu 3: pictures become words of the vocabulary, a word for the end of a line behind every row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from foveate.core.grid import Grid
from foveate.families.base import Family
from foveate.families.layout import ImageShape


class Emu3(Family):
    """There is no tower to read; ends of lines always stay."""

    model_types = ("emu3",)

    def incoming(self, kwargs: dict[str, Any]) -> dict[str, list[ImageShape]]:
        sizes = kwargs.get("image_sizes")
        if kwargs.get("pixel_values") is None or not isinstance(sizes, Tensor):
            return {}
        base: Any = self.parts.base
        factor = base.vqmodel.vision_spatial_factor
        return {"image": [_lines(h // factor, w // factor) for h, w in sizes.tolist()]}

    def shape(self, modality: str, size: int, grids: Sequence[Grid], features: Tensor | None = None) -> ImageShape:
        if features is not None:
            base: Any = self.parts.base
            end = base.get_input_embeddings().weight[base.vocabulary_mapping.eol_token_id]
            rows = int((features == end).all(-1).sum())
            if rows and size % rows == 0:
                return _lines(rows, size // rows - 1)
        return super().shape(modality, size, grids, features)


def _lines(h: int, w: int) -> ImageShape:
    return ImageShape((Grid(1, h, w),), tuple(row * (w + 1) + w for row in range(h)))
