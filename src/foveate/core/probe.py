"""A temporary token that reads the image for a method: appended after the prompt, removed with what it prunes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Probe:
    """What a method appends behind the prompt.

    Attributes:
        vectors: by decoder layer, `[P, D]`: layer 0's is the embedding, the others are added to the probe's
            hidden state before that layer.
        reads: layers at which the attention of the probe is recorded for `View.probe`.

    The probe stands at the positions that follow the prompt. Text does not see it (it comes last), so answers
    do not depend on it other than through what the method selects.
    """

    vectors: Mapping[int, Tensor]
    reads: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.vectors[0].shape[0]

    def append(self, embeds: Tensor) -> Tensor:
        """`[B, n, D]` -> `[B, n + P, D]`."""
        own = self.vectors[0].to(embeds.device, embeds.dtype)
        return torch.cat([embeds, own.expand(embeds.shape[0], -1, -1)], dim=1)

    def append_positions(self, positions: Tensor) -> Tensor:
        """`[..., B, n]` -> `[..., B, n + P]`: one after the last position of the row, on every axis alike."""
        last = positions.amax(-1, keepdim=True)
        if positions.dim() == 3:  # plain text positions (axis 0 of 4) count tokens, M-RoPE axes share their maximum
            axes = last[-3:].amax(0, keepdim=True).expand(min(3, last.shape[0]), -1, -1)
            last = torch.cat([last[:1], axes]) if positions.shape[0] == 4 else axes
        return torch.cat([positions, last + 1 + torch.arange(self.length, device=positions.device)], dim=-1)

    def add(self, layer: int, hidden: Tensor) -> Tensor:
        """Add this layer's vector to the probe's hidden state, the last P tokens."""
        vector = self.vectors.get(layer)
        if vector is None or layer == 0:
            return hidden
        own = hidden[:, -self.length :] + vector.to(hidden.device, hidden.dtype)
        return torch.cat([hidden[:, : -self.length], own], dim=1)
