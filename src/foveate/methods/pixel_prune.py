"""PixelPrune: what its neighbours foretell need not be encoded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from foveate.core.selection import Choice
from foveate.core.tower import TowerStage, TowerView
from foveate.core.tower_method import TowerMethod
from foveate.core.view import ModelInfo
from foveate.errors import ConfigurationError
from foveate.maths.prediction import unpredicted


@dataclass(frozen=True)
class PixelPrune(TowerMethod):
    """Drops, before the vision tower, tokens whose pixels equal their prediction from tokens before them (arXiv
    2604.00886): blank margins and plain areas of documents and screens.

    Tokens are blocks of pixels in raster order. With A the left neighbour, B the upper one, C the upper left one, a
    block is predicted by B if C is close to A and not to B, else by A (first row: A; first column: B; the first block
    is kept). It is dropped if it is close to its prediction, which then stands in for it: `max |x - y| <= tau`, so that
    nothing dropped is farther than `tau` from a kept block. How many are kept depends on the picture; at `tau=0`
    every dropped block has a kept copy.

    Clips are coded frame by frame. Unverified: no official output was compared.

    Args:
        tau: largest difference of two pixels that count as equal, in [0, 1] of the range from black to white.
        image_std: standard deviation by which the processor divides pixels (CLIP's and Qwen2.5-VL's is about 0.27).

    Raises:
        ConfigurationError: a negative tau, or a standard deviation that is not positive.
    """

    name = "pixel_prune"
    paper = "arXiv 2604.00886"
    adaptive = True

    keep: None = field(init=False, default=None)
    tau: float = 0.0
    image_std: float = 0.27

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tau >= 0 or not 0 < self.image_std < math.inf:
            raise ConfigurationError(
                f"PixelPrune(tau={self.tau}, image_std={self.image_std}): tau must be 0 or more, image_std positive."
            )

    @classmethod
    def example(cls, keep: float, model: Any) -> PixelPrune:
        """Everything that differs at all, or next to nothing: for tests on pictures of noise."""
        return cls(tau=0.0 if keep == 1.0 else math.inf)

    def tower_stages(self, info: ModelInfo) -> Sequence[TowerStage]:
        return (TowerStage(0, pixels=True),)

    def select_in_tower(self, view: TowerView) -> Choice:
        return unpredicted(view.pixels.flatten(1), view.grid, self.tau / self.image_std)
