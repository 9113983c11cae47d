"""Causal masks for layers whose caches have their own lengths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

STAND_IN = (1, 1, 1, 1)
"""Shape of a 4-D mask handed to the stock text model: it passes 4-D masks through instead of building one for
lengths that no layer has; every layer gets its own mask from us."""


class _PastOf:
    """The three questions that the stock mask builder asks a cache, answered for one length."""

    is_compileable = False

    def __init__(self, length: int) -> None:
        self.length = length

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.length + query_length, 0


def causal_mask(config: Any, hidden: Tensor, past: int, valid: Tensor | None) -> Any:
    """The mask that the model's attention backend expects.

    Args:
        config: text configuration (names the attention backend).
        hidden: `[B, n, D]`, read for shape, dtype and device only.
        past: columns already in the layer's cache.
        valid: `[B, past + n]` bool, or None if every column is a real token.
    """
    return create_causal_mask(
        config=config,
        inputs_embeds=hidden,
        attention_mask=None if valid is None else valid.to(hidden.device),
        past_key_values=_PastOf(past),
        layer_idx=0,
    )


def stand_in(device: torch.device) -> Tensor:
    return torch.zeros(STAND_IN, dtype=torch.bool, device=device)
