"""Causal masks for layers whose caches have their own lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from foveate.errors import ConfigurationError

STAND_IN = (1, 1, 1, 1)
"""Shape of a 4-D mask handed to the stock text model: it passes 4-D masks through instead of building one for
lengths that no layer has; every layer gets its own mask from us."""


@dataclass(frozen=True)
class Later:
    """Tokens behind the prompt, which must not see what the prompt's end has compacted away.

    While decoding, they find earlier layers' caches without the dropped tokens; when prompt and completion run
    through the model in one pass, a mask has to hide these.

    Attributes:
        queries: `[B, n]` bool, tokens behind the prompt.
        hidden: `[B, n]` bool, tokens that they must not see.
    """

    queries: Tensor
    hidden: Tensor

    def visible(self, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """For the stock mask builder: whether `query` may see `key`."""
        return ~(self.queries[row, query] & self.hidden[row, key])


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


def causal_mask(config: Any, hidden: Tensor, past: int, valid: Tensor | None, later: Later | None = None) -> Any:
    """The mask that the model's attention backend expects.

    Args:
        config: text configuration (names the attention backend).
        hidden: `[B, n, D]`, read for shape, dtype and device only.
        past: columns already in the layer's cache.
        valid: `[B, past + n]` bool, or None if every column is a real token.
        later: what some queries must not see; needs `past == 0`.

    Raises:
        ConfigurationError: `later` with an attention backend that knows causal masks only.
    """
    if later is not None and "flash" in config._attn_implementation:
        raise ConfigurationError(
            f"{config._attn_implementation} cannot hide from a completion what pruning removed from the caches of "
            "earlier layers. Load the model with attn_implementation='sdpa' for this training."
        )
    return create_causal_mask(
        config=config,
        inputs_embeds=hidden,
        attention_mask=None if valid is None else valid.to(hidden.device),
        past_key_values=_PastOf(past),
        layer_idx=0,
        **({} if later is None else {"and_mask_function": later.visible}),
    )


def stand_in(device: torch.device) -> Tensor:
    return torch.zeros(STAND_IN, dtype=torch.bool, device=device)
