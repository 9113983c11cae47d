"""PyramidDrop: drop a share of the tokens after every quarter of the layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from foveate.core.budget import Keep
from foveate.core.method import Score, Stage
from foveate.core.view import ModelInfo, View
from foveate.errors import ConfigurationError
from foveate.maths.schedule import scaled_layers, solve


@dataclass(frozen=True)
class PyramidDrop(Score):
    """Four stages of layers; before each of the last three, the same share of the visual tokens stays, those with the
    highest attention from the prompt's last token in the previous layer (arXiv 2410.17247).

    Deviation: the published code ranks by queries and keys of the layer that follows the cut. No official output was
    compared. The published code renumbers positions; `positions="contiguous"` does so.

    Args:
        keep: average visual tokens per decoder layer, as a ratio, count or `Keep`; the share per stage follows from it.
            The default is the published share 0.5 with layers 8, 16 and 24 of 32.
        layers: where to drop, increasing, at least 1. None: a quarter, half and three quarters of the depth. Budgets
            below a quarter need earlier layers.
    """

    name = "pyramiddrop"
    paper = "arXiv 2410.17247"
    verified = "the paper's rule written out separately, end to end (LLaVA, contiguous positions)"

    keep: Keep | float | int | None = 15 / 32
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is None:
            return
        object.__setattr__(self, "layers", tuple(self.layers))  # JSON has lists
        if not self.layers or min(self.layers) < 1 or list(self.layers) != sorted(set(self.layers)):
            raise ConfigurationError(f"PyramidDrop(layers={self.layers}) must be increasing layers from 1 on.")

    def stages(self, info: ModelInfo) -> Sequence[Stage]:
        layers = self.layers
        if layers is None:
            quarters = [info.layers * step // 4 for step in (1, 2, 3)]
            layers = info.reading_stages(scaled_layers(quarters, info.layers, info.layers, "PyramidDrop"))
        if layers[-1] >= info.layers:
            raise ConfigurationError(f"PyramidDrop(layers={layers}): the model has layers 0..{info.layers - 1}.")
        return [Stage(layer, reads="attention") for layer in layers]

    def shares(self, info: ModelInfo, keep: float) -> Sequence[float]:
        layers = [stage.layer for stage in self.stages(info)]
        return solve(
            layers, lambda share: [share ** (step + 1) for step in range(len(layers))], keep, info.layers, "PyramidDrop"
        )

    def score(self, view: View) -> Tensor:
        return view.attention().mean(0)[0]
