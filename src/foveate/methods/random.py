"""Random: the baseline that every method must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.method import Score
from foveate.core.view import View


@dataclass(frozen=True)
class Random(Score):
    """Keeps a random subset, the same for images of the same size and place in the prompt.

    Args:
        keep: budget at the stage (ratio, count or `Keep`).
        layer: stage layer, 0 = before the language model.
        seed: seed of the subset.
    """

    verified = "by its tests"

    seed: int = 0

    def score(self, view: View) -> Tensor:
        # drawn on the host, so that every device and every batch gives the same subset
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + view.image)
        return torch.rand(view.total, generator=generator).to(view.device)[view.index]
