"""Which shape stands beside which, where nobody could disagree."""

from __future__ import annotations

import math

from .palette import DIRECTIONS
from .scene import Scene, Shape

ALIGNED_DEGREES = 25.0
CLEAR_DEGREES = 50.0


def angle_between(anchor: Shape, other: Shape, direction: str) -> float:
    """Degrees, 0 to 180, between `direction` and the line from `anchor` to `other`."""
    (ax, ay), (bx, by), (dx, dy) = anchor.center, other.center, DIRECTIONS[direction]
    along = (bx - ax) * dx + (by - ay) * dy
    across = (bx - ax) * dy - (by - ay) * dx
    return math.degrees(math.atan2(abs(across), along))


def neighbour(scene: Scene, anchor: Shape, direction: str) -> Shape | None:
    """The shape standing `direction` ("left of", "above", ...) the anchor, `None` where it is debatable.

    Unambiguous means: it is within 25 degrees of the direction and the only shape within 50.
    """
    cone = [s for s in scene.shapes if s is not anchor and angle_between(anchor, s, direction) <= CLEAR_DEGREES]
    if len(cone) == 1 and angle_between(anchor, cone[0], direction) <= ALIGNED_DEGREES:
        return cone[0]
    return None
