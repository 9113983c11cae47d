"""Pruning by what is known about a sample: evidence boxes, or one threshold for each row. For training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from foveate.core.budget import Per
from foveate.core.grid import Grid
from foveate.core.method import Method, Stage
from foveate.core.selection import Choice
from foveate.core.tiles import Box as Part
from foveate.core.tiles import covers
from foveate.core.view import ModelInfo, View
from foveate.data.boxes import Box, box_mask
from foveate.errors import ConfigurationError
from foveate.methods.glimpse_prune import GlimpsePrune

ImageBoxes = Sequence[Sequence[Box]]
"""Normalised boxes of each image of a prompt."""


PlacedImage = tuple[Sequence[Grid], int | None]
"""An image as it lies in the prompt: its grids, and its tiles side by side (None: unknown)."""


def images_of(grids: Sequence[Grid], images: Sequence[tuple[int, int | None]]) -> list[PlacedImage]:
    """The images of a prompt.

    Args:
        grids: of all of them.
        images: number of grids of each, and its tiles side by side; empty: every grid is an image.
    """
    found, start = list[PlacedImage](), 0
    for count, across in images or ((1, None),) * len(grids):
        found.append((grids[start : start + count], across))
        start += count
    return found


def evidence(boxes: ImageBoxes, images: Sequence[PlacedImage], row: int) -> Tensor:
    """`[n]` bool: the tokens of a prompt that its boxes touch, image after image.

    Args:
        row: of the batch, for messages.

    Raises:
        ConfigurationError: boxes for another number of images.
    """
    if len(boxes) != len(images):
        raise ConfigurationError(
            f"row {row} has {len(images)} image(s), but boxes for {len(boxes)}; give one list per image."
        )
    return torch.cat([mask for own, image in zip(boxes, images, strict=True) for mask in touched(own, *image)])


def _within(boxes: ImageBoxes, view: View) -> Tensor:
    """The same for what a view shows of a prompt."""
    return evidence(boxes, images_of(view.grids, view.images), view.row).to(view.device)[view.index]


def touched(boxes: Sequence[Box], grids: Sequence[Grid], across: int | None = None) -> list[Tensor]:
    """Per grid of an image, bool `[t * h * w]`: the tokens that its boxes touch, wherever the picture has the grid.

    Args:
        across: tiles side by side, None if unknown (see `core.tiles.covers`).
    """
    _, parts = covers(grids, across)
    found = []
    for grid, part in zip(grids, parts, strict=True):
        placed = [cut for box in boxes if (cut := _cut(box, part)) is not None]
        mask = box_mask(placed, grid.h, grid.w)
        found.append((mask.T if grid.by_columns else mask).flatten().repeat(grid.t))
    return found


def _cut(box: Box, part: Part) -> Box | None:
    """What a box of the picture covers of a part of it, in shares of the part; None if nothing."""
    left, top, right, bottom = box
    if right <= part.left or left >= part.right or bottom <= part.top or top >= part.bottom:
        return None
    width, height = part.right - part.left, part.bottom - part.top
    return (
        (left - part.left) / width, (top - part.top) / height, (right - part.left) / width, (bottom - part.top) / height
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class EvidenceBoxes(Method):
    """Keeps what evidence boxes touch: GlimpsePrune's pruning with a given mask in place of its predictor.

    After layer `layer` everything else is removed, from the caches of the layers before too.

    Args:
        boxes: for each row of the batch, for each of its images, normalised boxes (left, top, right, bottom).
        layer: K, 0-based.

    Raises:
        ConfigurationError: a layer that the model has not, or boxes that do not fit the batch.
    """

    name = "evidence_boxes"
    paper = "arXiv 2508.01548"
    verified = "official implementation (`ref_masks`)"

    keep: None = field(init=False, default=None)
    boxes: Sequence[ImageBoxes]
    layer: int
    per: Per = "prompt"

    def parameters(self) -> dict[str, Any]:
        return {"rows": len(self.boxes), "layer": self.layer}

    def stages(self, info: ModelInfo) -> Sequence[Stage]:
        if not 0 <= self.layer < info.layers:
            raise ConfigurationError(f"EvidenceBoxes(layer={self.layer}): the model has layers 0..{info.layers - 1}.")
        return (Stage(self.layer + 1, compact_earlier=True),)

    def select(self, view: View) -> Choice:
        if view.row >= len(self.boxes):
            raise ConfigurationError(f"EvidenceBoxes has boxes for {len(self.boxes)} rows, the batch has more.")
        return _within(self.boxes[view.row], view)


@dataclass(frozen=True, eq=False)
class RowwiseGlimpse(GlimpsePrune):
    """`GlimpsePrune` with a threshold for each row, and given boxes for those rows that have them.

    Args:
        boxes: as in `EvidenceBoxes`; None for a row that the module decides. None: it decides all.
        thresholds: one per row; None: the module's.
    """

    name = "rowwise_glimpse"

    boxes: Sequence[ImageBoxes | None] | None = None
    thresholds: Sequence[float] | None = None

    def decide(self, view: View) -> Choice:
        boxes = None if self.boxes is None else self.boxes[view.row]
        if boxes is not None:
            return _within(boxes, view)
        budget = self.budget
        if self.thresholds is not None:
            budget = replace(budget, threshold=self.thresholds[view.row])
        return self._within(view, budget)
