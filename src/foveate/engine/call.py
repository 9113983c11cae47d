"""What a call of the base model is: decided once, before it runs, from its length and its images."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveate.core.grid import Grid

if TYPE_CHECKING:
    from foveate.engine.forward import ForwardPass


class Kind(Enum):
    """What is to be done with a call. Token ids alone never decide: only given images make a prefill."""

    PLAIN = "no images, and a cache (if any) that holds everything: none of our business"
    PREFILL = "images stand in the new tokens"
    CONTINUATION = "new text behind a conversation that we know"


@dataclass
class Call:
    """One call of the base model, from its pre-hook to its post-hook.

    Attributes:
        visual: per modality, `[B, n]` bool on the host: the placeholder tokens.
        features: per modality, pre-encoded features of each image (`generate` encodes before it calls).
        incoming: per modality, grids of the raw images that were given to this call.
        fresh: per modality, which of these images stand in this call's tokens (the others are cached).
        recorded: whether a cache of ours keeps the positions of its conversation.
    """

    kind: Kind
    visual: dict[str, Tensor] = field(default_factory=dict)
    features: dict[str, list[Tensor]] = field(default_factory=dict)
    incoming: dict[str, list[Grid]] = field(default_factory=dict)
    fresh: dict[str, list[int]] = field(default_factory=dict)
    recorded: bool = False
    forward: ForwardPass | None = None
    started: float | torch.cuda.Event | None = None

    @property
    def sizes(self) -> dict[str, list[int]]:
        """Per modality, tokens of every image given."""
        encoded = {modality: [len(f) for f in features] for modality, features in self.features.items()}
        return encoded | {modality: [grid.size for grid in grids] for modality, grids in self.incoming.items()}
