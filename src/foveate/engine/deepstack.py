"""Features that stock code adds at the visual tokens behind some decoder layers, for those tokens that are alive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

NAMES = ("visual_pos_masks", "deepstack_visual_embeds")
"""Arguments of the language model that bring them, a tensor per layer from the first on, to be added behind it."""

BEFORE = ("vision_mask", "deepstack_features")
"""The same, by the layer before which they are added."""


@dataclass(frozen=True)
class Deepstack:
    """What was taken away from stock code, to be added layer by layer.

    Attributes:
        visual: `[B, n]` bool, visual tokens of the unpruned rows.
        features: by the layer behind which they are added (-1: before the first), `[visual tokens, D]`.
    """

    visual: Tensor
    features: Mapping[int, Tensor]

    @classmethod
    def taken(cls, kwargs: dict[str, Any]) -> tuple[Deepstack | None, dict[str, Any]]:
        """The features in a call of the language model, and its arguments without them."""
        visual, features = (kwargs.get(name) for name in NAMES)
        if visual is not None and features is not None:
            return cls(visual, dict(enumerate(features))), kwargs | dict.fromkeys(NAMES)
        visual, features = (kwargs.get(name) for name in BEFORE)
        if visual is not None and isinstance(features, dict):
            behind = {layer - 1: feature for layer, feature in features.items()}
            return cls(visual[..., 0] if visual.dim() == 3 else visual, behind), kwargs | dict.fromkeys(BEFORE)
        return None, kwargs

    def behind(self, layer: int, hidden: Tensor, index: Tensor | None, length: int) -> Tensor:
        """The hidden states that come out of `layer`, with its features.

        Args:
            index: `[B, m]` columns of the unpruned rows that `hidden` has, -1 on padding; None: all.
            length: tokens of an unpruned row, a probe's included.
        """
        if layer not in self.features:
            return hidden
        visual, feature = self.visual.to(hidden.device), self.features[layer].to(hidden.device, hidden.dtype)
        number = (visual.flatten().long().cumsum(0) - 1).view_as(visual).clamp(min=0)
        visual, number = (F.pad(t, (0, length - t.shape[1])) for t in (visual, number))
        if index is not None:
            index = index.to(hidden.device)
            places = index.clamp(min=0)
            visual, number = visual.gather(1, places) & (index >= 0), number.gather(1, places)
        return hidden + feature[number].masked_fill(~visual[..., None], 0)
