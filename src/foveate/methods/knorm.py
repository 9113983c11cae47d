"""KNorm: keep the tokens with the smallest keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from foveate.core.budget import Keep
from foveate.core.method import Score, Stage
from foveate.core.view import ModelInfo, View
from foveate.errors import ConfigurationError
from foveate.maths.schedule import scaled_layers
from foveate.methods.vitcop import key_norm


@dataclass(frozen=True)
class KNorm(Score):
    """ViTCoP's saliency alone (arXiv 2601.17818, ablation): before one layer keep the visual tokens whose head-mean
    key of the previous layer has the smallest L2 norm.

    Where the ablation prunes is our choice: ViTCoP's shallow layer. Unverified: no published number was compared.

    Args:
        keep: average visual tokens per decoder layer, as a ratio, count or `Keep`; a threshold is on minus the norm.
        layer: where to prune, at least 1. None: 2 of 32, scaled to the depth.
    """

    paper = "arXiv 2601.17818"

    keep: Keep | float | int | None = 1 / 3
    layer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer == 0:
            raise ConfigurationError("KNorm(layer=0): no keys exist before the language model; use layer >= 1.")

    def stages(self, info: ModelInfo) -> Sequence[Stage]:
        layer = self.layer
        if layer is None:
            (layer,) = info.reading_stages(scaled_layers((2,), 32, info.layers, "KNorm"))
        return (Stage(layer, reads="keys"),)

    def score(self, view: View) -> Tensor:
        return -key_norm(view)
