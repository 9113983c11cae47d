"""How crowded, large and legible the scenes of a split are."""

from __future__ import annotations

from dataclasses import dataclass

Range = tuple[int, int]
Size = tuple[int, int]


@dataclass(frozen=True)
class SceneSpec:
    """The distribution that `compose` draws a scene from. All ranges are inclusive, lengths in pixels.

    `sizes` are (width, height) pairs with weights.
    """

    sizes: tuple[tuple[Size, float], ...] = (((336, 336), 1.0),)
    shapes: Range = (2, 6)
    rows: Range = (2, 5)
    panel_share: float = 0.75
    shape_px: Range = (40, 62)
    font_px: Range = (17, 22)
    clutter: Range = (0, 10)
    noise: float = 9.0
