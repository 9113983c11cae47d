"""FastV: after two layers, keep what the last token attends to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from foveate.core.budget import Keep
from foveate.core.method import Score, Stage
from foveate.core.view import ModelInfo, View
from foveate.errors import ConfigurationError
from foveate.maths.schedule import scaled_layers


@dataclass(frozen=True)
class FastV(Score):
    """Before layer K keeps the visual tokens with the highest attention from the prompt's last token in layer K-1,
    averaged over heads (arXiv 2403.06764).

    No official output was compared. The published code renumbers positions; `positions="contiguous"` does so.

    Args:
        keep: average visual tokens per decoder layer, as a ratio, count or `Keep`; the default is the published K=2,
            R=50 % on 32 layers. The first K layers read everything, so at least K / layers.
        layer: K, at least 1. None: 2 of 32 (published), scaled to the depth.
    """

    paper = "arXiv 2403.06764"
    verified = "the published rule written out separately, end to end (LLaVA, contiguous positions)"

    keep: Keep | float | int | None = 17 / 32
    layer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer == 0:
            raise ConfigurationError("FastV(layer=0): no attention exists before the language model; use layer >= 1.")

    def stages(self, info: ModelInfo) -> Sequence[Stage]:
        layer = self.layer
        if layer is None:
            (layer,) = info.reading_stages(scaled_layers((2,), 32, info.layers, "FastV"))
        return (Stage(layer, reads="attention"),)

    def score(self, view: View) -> Tensor:
        return view.attention().mean(0)[0]
