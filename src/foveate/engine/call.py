"""What a call of the base model is: decided once, before it runs, from its length and its images."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveate.engine.conversation import PrefillRecord
from foveate.families.layout import ImageShape

if TYPE_CHECKING:
    from foveate.engine.cache import FoveatedCache
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
        mask: the attention mask that the call was given; the language model may be given prepared ones.
        padded: whether that mask has padding, if it was looked at when ids came to the host; None: not known.
        ids: `[B, n]` token ids on the host, None if only embeddings were given.
        features: per modality, pre-encoded features of each image (`generate` encodes before it calls).
        given: modalities of which raw images or features were given.
        incoming: per modality, the raw images that were given to this call, as far as its arguments tell.
        cache: the foveated cache that the call uses, referred to weakly.
        fresh: per modality, which of these images stand in this call's tokens (the others are cached).
        recorded: whether a cache of ours keeps the positions of its conversation.
        last: tokens at the end whose hidden states the caller wants, where the language model was told so; 0: all.
        records: what this prefill brings into the conversation, once it has come to its end.
    """

    kind: Kind
    visual: dict[str, Tensor] = field(default_factory=dict)
    mask: Any = None
    padded: bool | None = None
    ids: Tensor | None = None
    features: dict[str, list[Tensor]] = field(default_factory=dict)
    given: tuple[str, ...] = ()
    incoming: dict[str, list[ImageShape]] = field(default_factory=dict)
    fresh: dict[str, list[int]] = field(default_factory=dict)
    recorded: bool = False
    records: list[PrefillRecord] = field(default_factory=list)
    last: int = 0
    forward: ForwardPass | None = None
    cache: weakref.ref[FoveatedCache] | None = None
    started: float | torch.cuda.Event | None = None

    @property
    def sizes(self) -> dict[str, list[int]]:
        """Per modality, tokens of every image given, as far as they are known before it is encoded."""
        encoded = {modality: [len(f) for f in features] for modality, features in self.features.items()}
        return encoded | {modality: [shape.size for shape in shapes] for modality, shapes in self.incoming.items()}
