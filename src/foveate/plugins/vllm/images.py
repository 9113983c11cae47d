"""Images as vLLM's inputs bring them: their grids and positions, before any is encoded."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from foveate.core.grid import Grid
from foveate.families import adapt
from foveate.families.base import Family
from foveate.families.layout import ImageShape

PIXELS, GRIDS = "pixel_values", "image_grid_thw"
TILES = "image_num_patches"
"""Tiles of every image, where features come per tile."""


@dataclass(frozen=True, eq=False)
class Images:
    """What is true of a model's images; all of it comes from the adapter of its family.

    Args:
        family: of the same model in transformers, without weights.
    """

    family: Family

    @classmethod
    def of(cls, config: Any) -> Images:
        """From a model's configuration.

        Raises:
            UnsupportedModelError: images of such a model cannot be pruned.
        """
        from transformers import AutoModelForImageTextToText

        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(copy.deepcopy(config))
        return cls(adapt(model))

    def shapes(self, inputs: Mapping[str, Any]) -> list[ImageShape]:
        """How the tokens of every image lie.

        Args:
            inputs: what the processor made of them.
        """
        if not self.family.in_tiles("image"):
            return self.family.incoming(dict(inputs)).get("image", [])
        if inputs.get(TILES) is None:
            return []
        grid = self.tower_grids(inputs)[0]
        return [ImageShape((grid,) * tiles, tiles=tiles) for tiles in inputs[TILES].flatten().tolist()]

    def unpadded(self, inputs: Mapping[str, Any], shapes: Sequence[ImageShape]) -> Any:
        """Pixels of every image without the empty tiles that make all of a prompt equally many."""
        pixels = inputs[PIXELS]
        return [own[: shape.tiles] for own, shape in zip(pixels, shapes, strict=True)] if _in_stacks(pixels) else pixels

    def tower_grids(self, inputs: Mapping[str, Any]) -> list[Grid]:
        """Grids of all images (or tiles) in one call of the tower."""
        pixels = inputs.get(PIXELS)
        if isinstance(pixels, list | tuple):
            pixels = torch.cat([one if one.dim() == 4 else one[None] for one in pixels])
        if _in_stacks(pixels):
            pixels = pixels.flatten(0, 1)
        return self.family.tower_grids((), {PIXELS: pixels, GRIDS: inputs.get(GRIDS)})

    @property
    def one_axis(self) -> bool:
        """Whether positions are plain numbers."""
        return is_one_axis(self.family.config)

    def positions(self, shape: ImageShape) -> Tensor:
        """`[size, 3]` positions of an image's tokens in the unpruned prompt, counted from its first."""
        if self.one_axis:
            return torch.arange(shape.size)[:, None].expand(-1, 3)
        return torch.cat([grid.coordinates() for grid in shape.grids])

    def extent(self, shape: ImageShape) -> int:
        """How far the text behind an image stands from its first token in the unpruned prompt."""
        return shape.size if self.one_axis else max(max(grid) for grid in shape.grids)


def is_one_axis(config: Any) -> bool:
    """Whether positions of a model's language model are plain numbers."""
    return "mrope_section" not in (getattr(config.get_text_config(), "rope_parameters", None) or {})


def _in_stacks(pixels: Any) -> TypeGuard[Tensor]:
    """Whether every image brings a stack of tiles."""
    return isinstance(pixels, Tensor) and pixels.dim() == 5
