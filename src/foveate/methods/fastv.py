"""FastV: after two layers, keep what the last token attends to."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.core.budget import top
from foveate.core.method import Choice, ModelInfo, Stage
from foveate.core.view import View
from foveate.maths.schedule import Schedule, scaled_layers, single_stage
from foveate.methods.base import InsideLLM


@dataclass(frozen=True)
class FastV(InsideLLM):
    """Before layer K keeps the visual tokens with the highest attention from the prompt's last token in layer K-1,
    averaged over heads (arXiv 2403.06764).

    Unverified: no official output or published number was compared.

    Args:
        keep: average visual tokens per decoder layer over the unpruned number, in (0, 1]; the default is the
            published K=2, R=50 % on 32 layers. The first K layers read everything, so at least K / layers.
        layer: K, at least 1. None: 2 of 32 (published), scaled to the depth.
    """

    paper = "arXiv 2403.06764"

    keep: float = 17 / 32
    layer: int | None = None

    def schedule(self, info: ModelInfo) -> Schedule:
        layer = scaled_layers((2,), 32, info.layers, "FastV")[0] if self.layer is None else self.layer
        return single_stage(layer, self.keep, info.layers, "FastV")

    def choose(self, stage: Stage, view: View, count: int) -> Choice:
        return top(view.attention().mean(0)[0], count)
