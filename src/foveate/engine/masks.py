"""Attention masks for layers whose caches have their own lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from foveate.engine.kept import Kept
from foveate.engine.naming import CACHE
from foveate.errors import ConfigurationError


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
    """A causal mask as the model's attention backend expects it.

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
        **{CACHE: _PastOf(past)},
        layer_idx=0,
        **({} if later is None else {"and_mask_function": later.visible}),
    )


def gathered_mask(given: Tensor, rows: Tensor, columns: Tensor, past: int, length: int) -> Tensor:
    """What stock code prepared for the whole sequence, for the tokens that a layer sees.

    Args:
        given: `[B | 1, 1, length, m]` bool or additive, or `[B, m]`, over the last `m` tokens of the conversation.
        rows: `[B, q]` columns of the unpruned rows of this pass; -1 on padding.
        columns: `[B, k]` logical indices of what the layer's attention reads, this pass's tokens last; -1 on padding.
        past: logical tokens before this pass.
        length: tokens of the unpruned pass.
    """
    offset = past + length - given.shape[-1]
    at = (columns - offset).clamp(min=0).to(given.device)
    dead = (columns < 0).to(given.device)
    if given.dim() == 2:
        return given.gather(1, at).masked_fill(dead, 0)
    full = given.expand(rows.shape[0], *given.shape[1:])
    batch = torch.arange(rows.shape[0], device=given.device)[:, None, None]
    queries = rows.clamp(min=0).to(given.device)[:, :, None]
    made = full[batch, :, queries, at[:, None, :]].permute(0, 3, 1, 2)
    return made.masked_fill(dead[:, None, None], _hidden_value(given))


def hide_columns(made: Tensor, gone: Tensor) -> Tensor:
    """A mask with the columns `gone` `[B, k]` hidden from every query."""
    gone = gone.to(made.device)
    if made.dim() == 2:
        return made.masked_fill(gone, 0)
    return made.masked_fill(gone[:, None, None], _hidden_value(made))


def continued_mask(tail: Tensor, kept: Kept, mask: Tensor | None) -> Tensor:
    """The same for new text behind a pruned conversation: the part about the past is made once.

    Args:
        tail: `[B | 1, 1, n, t]` or `[B, t]` over everything behind the first `kept.until` tokens.
        kept: what the layer holds of those.
        mask: `[B, m]` bool padding mask of the conversation, None if every token is real.
    """
    key = (tail.dim(), tail.dtype, tail.device)
    if key not in kept.masks:
        seen = (kept.index >= 0).to(tail.device)
        if mask is not None:
            seen = seen & mask.bool().to(tail.device).gather(1, kept.index.clamp(min=0).to(tail.device))
        made = seen.to(tail.dtype)
        if tail.is_floating_point():
            made = torch.zeros_like(made).masked_fill(~seen, _hidden_value(tail))
        kept.masks[key] = made if tail.dim() == 2 else made[:, None, None]
    prefix = kept.masks[key]
    if tail.dim() == 4 and tail.shape[2] > 1:
        prefix = prefix.expand(-1, -1, tail.shape[2], -1)
    if tail.shape[0] != prefix.shape[0]:
        tail = tail.expand(prefix.shape[0], *tail.shape[1:])
    return torch.cat([prefix, tail], dim=-1)


def _hidden_value(given: Tensor) -> float | bool:
    return False if given.dtype == torch.bool else torch.finfo(given.dtype).min
