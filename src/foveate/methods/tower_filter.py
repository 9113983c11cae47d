"""TowerFilter: a fixed share of an image's tokens goes through the vision tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from foveate.core.budget import Keep, top
from foveate.core.selection import Choice, Selection
from foveate.core.tower import TowerStage, TowerView
from foveate.core.tower_method import TowerMethod
from foveate.core.view import ModelInfo, Tap
from foveate.errors import ConfigurationError
from foveate.maths.diversity import max_min

CHOICES = ("variance", "class_token", "max_min")


@dataclass(frozen=True)
class TowerFilter(TowerMethod):
    """Keeps a fixed share of the tokens before the vision tower or one of its early blocks. Ours, not published.

    - `"variance"`: before the tower, those whose pixels vary most, `mean over channels of E[x^2] - E[x]^2` within the
      token's patches;
    - `"class_token"`: before an early block, those to which the class token attends most in the block before;
    - `"max_min"`: before an early block, those whose hidden states are most different (cosine) from all chosen so far.

    Args:
        keep: share of the tokens that the tower reads from there on, in (0, 1], or their number per image.
        by: what chooses. None: `"class_token"` where the tower has one, else `"variance"`.
        block: tower block before which it chooses. None: 0 for `"variance"`, 2 for the others.

    Raises:
        ConfigurationError: an unknown choice, or attention before the tower has run.
    """

    name = "tower_filter"

    keep: Keep | float | int | None = 0.5
    by: Literal["variance", "class_token", "max_min"] | None = None
    block: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by not in (None, *CHOICES):
            raise ConfigurationError(f"TowerFilter(by={self.by!r}) must be one of {', '.join(CHOICES)}.")
        if self.block is not None and self.block < 0:
            raise ConfigurationError(f"TowerFilter(block={self.block}) must be 0 or more.")

    def _by(self, info: ModelInfo) -> str:
        return self.by or ("class_token" if info.has_class_token else "variance")

    def tower_stages(self, info: ModelInfo) -> Sequence[TowerStage]:
        by = self._by(info)
        block = self.block if self.block is not None else 0 if by == "variance" else 2
        if by != "class_token":
            return (TowerStage(block, pixels=by == "variance"),)
        if block == 0:
            raise ConfigurationError("TowerFilter(by='class_token') reads the block before; choose block 1 or later.")
        return (TowerStage(block, taps=(Tap("received", block - 1),)),)

    def select_in_tower(self, view: TowerView) -> Choice:
        count = self.budget.size(view.grid.size)
        if count >= len(view):
            return Selection.everything(len(view), view.device)
        by = self._by(view.info)
        if by == "max_min":
            return max_min(view.hidden.float().mean(1), count).sort().values
        return top(variance(view.pixels) if by == "variance" else view.tap(Tap("received", view.block - 1)), count)


def variance(pixels: Tensor) -> Tensor:
    """`[n]` variance of pixels `[n, U, K, A]` within each plane, mean over the planes."""
    x = pixels.float()
    first, second = x.mean(-1).mean(1), x.square().mean(-1).mean(1)
    return (second - first.square()).clamp(min=0).mean(-1)
