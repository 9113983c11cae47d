"""Evidence boxes: their coordinate conventions and the visual tokens they cover.

Boxes are `(left, top, right, bottom)`. *Normalised* boxes are fractions of the image's width and height.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from foveate.errors import FoveateError

Box = Sequence[float]
BoxFormat = Literal["pixel", "pixel_xywh", "normalized", "thousandths"]
"""`pixel`: left, top, right, bottom in pixels; `pixel_xywh`: left, top, width, height in pixels;
`normalized`: fractions; `thousandths`: left, top, right, bottom in 1/1000 of the image."""


class BoxError(FoveateError):
    """A box that does not describe a region of its image."""


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


def check_boxes(boxes: Sequence[Box], tolerance: float = 1e-3) -> None:
    """Refuse normalised boxes that are malformed, empty or outside the image.

    `tolerance` (a fraction of the image) forgives rounding at the border.

    Raises:
        BoxError: names the box and what is wrong with it.
    """
    for box in boxes:
        if len(box) != 4 or not all(isinstance(x, int | float) for x in box):
            raise BoxError(f"box {list(box)} is not four numbers (left, top, right, bottom)")
        left, top, right, bottom = box
        # Written so that NaN fails too.
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


def _show(box: Box) -> str:
    return "[" + ", ".join(f"{x:.4g}" for x in box) + "]"
