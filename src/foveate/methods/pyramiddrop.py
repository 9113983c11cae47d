"""PyramidDrop: drop a share of the tokens after every quarter of the layers."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.core.budget import top
from foveate.core.method import Choice, ModelInfo, Stage
from foveate.core.view import View
from foveate.errors import ConfigurationError
from foveate.maths.schedule import Schedule, scaled_layers, solve
from foveate.methods.base import InsideLLM


@dataclass(frozen=True)
class PyramidDrop(InsideLLM):
    """Four stages of layers; before each of the last three, the same share of the visual tokens stays, those with the
    highest attention from the prompt's last token in the previous layer (arXiv 2410.17247).

    Deviation: the published code ranks by queries and keys of the layer that follows the cut. Unverified: no official
    output or published number was compared.

    Args:
        keep: average visual tokens per decoder layer over the unpruned number, in (0, 1]; the share per stage
            follows from it. The default is the published share 0.5 with layers 8, 16 and 24 of 32.
        layers: where to drop, increasing, at least 1. None: a quarter, half and three quarters of the depth. Budgets
            below a quarter need earlier layers.
    """

    name = "pyramiddrop"
    paper = "arXiv 2410.17247"

    keep: float = 15 / 32
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.layers
        if given is not None and (not given or min(given) < 1 or list(given) != sorted(set(given))):
            raise ConfigurationError(f"PyramidDrop(layers={given}) must be increasing layers from 1 on.")

    def schedule(self, info: ModelInfo) -> Schedule:
        quarters = [info.layers * step // 4 for step in (1, 2, 3)]
        layers = (
            scaled_layers(quarters, info.layers, info.layers, "PyramidDrop") if self.layers is None else self.layers
        )
        return solve(
            lambda share: tuple((layer, share ** (step + 1)) for step, layer in enumerate(layers)),
            self.keep,
            info.layers,
            "PyramidDrop",
        )

    def choose(self, stage: Stage, view: View, count: int) -> Choice:
        return top(view.attention().mean(0)[0], count)
