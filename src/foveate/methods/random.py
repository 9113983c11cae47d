"""Random: the baseline that every method must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.method import Score, Stage
from foveate.core.view import ModelInfo, View
from foveate.errors import ConfigurationError


@dataclass(frozen=True)
class Random(Score):
    """Keeps a random subset, the same for images (and frames of a number) of the same size and place in the prompt.

    Args:
        keep: average visual tokens per decoder layer, as a ratio, count or `Keep`; a threshold is on numbers uniform in
            [0, 1).
        layer: where to prune, 0 = before the language model.
        seed: seed of the subset, a whole number.

    Raises:
        ConfigurationError: at construction, if the seed is no whole number or too large for a generator.
    """

    verified = "by its tests"

    layer: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.seed) is not int or abs(self.seed) >= 2**40:
            raise ConfigurationError(f"random: seed={str(self.seed)[:40]} must be a whole number, smaller than 2**40.")

    def stages(self, info: ModelInfo) -> Sequence[Stage]:
        return (Stage(self.layer),)

    def score(self, view: View) -> Tensor:
        # drawn on the host, so that every device and every batch gives the same subset
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + view.image + 7_919 * view.frame)
        return torch.rand(view.total, generator=generator).to(view.device)[view.index]
