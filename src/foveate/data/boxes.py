"""Evidence boxes: their coordinate conventions and the visual tokens they cover.

Boxes are `(left, top, right, bottom)`. *Normalised* boxes are fractions of the image's width and height.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from foveate.errors import FoveateError

Box = Sequence[float]
BoxFormat = Literal["pixel", "pixel_xywh", "normalized", "thousandths"]
"""`pixel`: left, top, right, bottom in pixels; `pixel_xywh`: left, top, width, height in pixels;
`normalized`: fractions; `thousandths`: left, top, right, bottom in 1/1000 of the image."""


class BoxError(FoveateError):
    """A box that does not describe a region of its image.

    Remedy: declare the right `--box-format`; docs/data.md says what each means.
    """


def normalize_boxes(
    boxes: Sequence[Box], box_format: BoxFormat, *, width: int = 1, height: int = 1
) -> list[list[float]]:
    """Boxes as fractions of an image of `width` x `height` pixels. Nothing is clipped."""
    if box_format not in get_args(BoxFormat):
        raise BoxError(f"unknown box format {box_format!r}; choose one of {', '.join(get_args(BoxFormat))}")
    if box_format == "pixel_xywh":
        boxes = [(x, y, x + w, y + h) for x, y, w, h in boxes]
    across, down = {"normalized": (1, 1), "thousandths": (1000, 1000)}.get(box_format, (width, height))
    return [[x0 / across, y0 / down, x1 / across, y1 / down] for x0, y0, x1, y1 in boxes]


def read_boxes(
    raw: Any, sizes: Sequence[tuple[int, int]], box_format: BoxFormat
) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """Normalised boxes of each image, from what a row holds.

    Args:
        raw: a list of boxes, or one such list for each image.
        sizes: (width, height) of the images.
        box_format: what the boxes are declared to be.

    Raises:
        BoxError: names the box and what is wrong: no four numbers, empty, outside the image, or numbers that cannot be
            of the declared unit.
    """
    if not isinstance(raw, list | tuple):
        raise BoxError(f"boxes are not a list but {type(raw).__name__}")
    per_image = [raw] if len(sizes) == 1 and not _nested(raw) else raw
    if len(per_image) != len(sizes):
        raise BoxError(f"boxes are given for {len(per_image)} images, but there are {len(sizes)}")
    found = []
    for boxes, (width, height) in zip(per_image, sizes, strict=True):
        _check_shape(boxes)
        normalized = normalize_boxes(boxes, box_format, width=width, height=height)
        check_boxes(normalized)
        _check_unit(boxes, box_format)
        found.append(tuple(map(tuple, normalized)))
    return tuple(found)


def check_boxes(boxes: Sequence[Box], tolerance: float = 1e-3) -> None:
    """Refuse normalised boxes that are malformed, empty or outside the image.

    `tolerance` (a fraction of the image) forgives rounding at the border.

    Raises:
        BoxError: names the box and what is wrong with it.
    """
    _check_shape(boxes)
    for box in boxes:
        left, top, right, bottom = box
        if not (left < right and top < bottom):
            raise BoxError(f"box {_show(box)} is empty: left must be < right and top < bottom")
        if not (min(left, top) >= -tolerance and max(right, bottom) <= 1 + tolerance):
            raise BoxError(
                f"box {_show(box)} lies outside the image (fractions of width and height are shown); "
                "check the declared box format"
            )


def box_mask(boxes: Sequence[Box], height: int, width: int) -> Tensor:
    """Visual tokens of a `height` x `width` grid that normalised boxes touch: bool [height, width].

    A box covers the cells `int(left * width) .. int(right * width)`, the right and bottom cell included and
    clamped to the grid (GlimpsePrune's rule).
    """
    mask = torch.zeros(height, width, dtype=torch.bool)
    for left, top, right, bottom in boxes:
        x0, y0 = max(int(left * width), 0), max(int(top * height), 0)
        mask[y0 : int(bottom * height) + 1, x0 : int(right * width) + 1] = True
    return mask


def _nested(raw: Sequence[Any]) -> bool:
    """Whether boxes are given per image: lists of lists of lists, of which some may be empty."""
    return any(isinstance(item, list | tuple) and all(isinstance(x, list | tuple) for x in item) for item in raw)


def _check_shape(boxes: Any) -> None:
    """Refuse anything but a list of four finite numbers each, before arithmetic is done with it."""
    if not isinstance(boxes, list | tuple):
        raise BoxError(f"boxes of an image are not a list but {type(boxes).__name__}")
    for box in boxes:
        if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(_is_number, box)):
            raise BoxError(f"box {box!r:.100} is not four numbers")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_unit(boxes: Sequence[Box], box_format: BoxFormat) -> None:
    """Refuse boxes declared in pixels or thousandths that lie within one of them: such numbers are fractions."""
    for box in boxes:
        if box_format != "normalized" and max(box) <= 1:
            raise BoxError(
                f"box {_show(box)} is declared as {box_format}, but no number is above 1: these are fractions; "
                "declare the box format normalized"
            )


def _show(box: Box) -> str:
    return "[" + ", ".join(f"{x:.4g}" for x in box) + "]"
