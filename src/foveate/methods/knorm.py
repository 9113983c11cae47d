"""KNorm: keep the tokens with the smallest keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.core.budget import top
from foveate.core.method import Choice, ModelInfo, Stage
from foveate.core.view import View
from foveate.errors import ConfigurationError
from foveate.maths.schedule import Schedule, scaled_layers, single_stage
from foveate.methods.base import InsideLLM


@dataclass(frozen=True)
class KNorm(InsideLLM):
    """ViTCoP's saliency alone (arXiv 2601.17818, ablation): before one layer keep the visual tokens whose head-mean
    key of the previous layer has the smallest L2 norm.

    Where the ablation prunes is our choice: ViTCoP's shallow layer. Unverified: no published number was compared.

    Args:
        keep: average visual tokens per decoder layer over the unpruned number, in (0, 1].
        layer: stage layer, at least 1. None: 2 of 32, scaled to the depth.
    """

    paper = "arXiv 2601.17818"
    reads_attention: ClassVar[bool] = False

    layer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer == 0:
            raise ConfigurationError("KNorm(layer=0): no keys exist before the language model; use layer >= 1.")

    def schedule(self, info: ModelInfo) -> Schedule:
        layer = scaled_layers((2,), 32, info.layers, "KNorm")[0] if self.layer is None else self.layer
        return single_stage(layer, self.keep, info.layers, "KNorm")

    def choose(self, stage: Stage, view: View, count: int) -> Choice:
        return top(-view.keys.float().mean(0).norm(dim=-1), count)
