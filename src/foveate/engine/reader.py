"""Reading queries and keys of the layer that has just run, from its cache or from its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.core.attention import attention_rows, project_heads
from foveate.engine.cache import FoveatedCache
from foveate.families.base import Family


@dataclass
class LayerReader:
    """One decoder layer and the batch that ran through it.

    Attributes:
        layer: its number.
        now: tokens of this forward pass that it saw.
        cache: where its keys stand, None without a cache.
        held: its input `[B, n, D]` and rotary (cos, sin), if somebody will read queries (or keys without cache).
    """

    family: Family
    layer: int
    now: int
    cache: FoveatedCache | None
    held: tuple[Tensor, tuple[Tensor, Tensor]] | None

    @property
    def scale(self) -> float:
        module: Any = self.family.parts.layers[self.layer]
        return module.self_attn.scaling

    @property
    def past(self) -> int:
        """Columns that its cache held before this forward pass."""
        return 0 if self.cache is None else self.cache.physical_length(self.layer) - self.now

    def keys(self, row: int) -> Tensor:
        """`[H_kv, past + now, d]` keys after rotary embedding."""
        if self.cache is not None:
            return self.cache.layers[self.layer].keys[row]
        return self._project("k", row, slice(None))

    def queries(self, row: int, tokens: Tensor | slice) -> Tensor:
        """`[H, Q, d]` queries after rotary embedding, computed again for a few tokens."""
        return self._project("q", row, tokens)

    def attention(self, row: int, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """`[H, Q, now]` attention probabilities of some tokens; the softmax runs over cached keys too.

        Args:
            tokens: `[Q]` places in this forward pass.
            valid: `[past + now]` bool or None.
        """
        q = self.queries(row, tokens)
        keys = self.keys(row).to(q.device)
        columns = torch.arange(keys.shape[1], device=q.device)
        allowed = columns[None] <= tokens.to(q.device)[:, None] + self.past
        if valid is not None:
            allowed = allowed & valid.to(q.device)[None]
        return attention_rows(q, keys, self.scale, allowed)[..., self.past :]

    def _project(self, which: str, row: int, tokens: Tensor | slice) -> Tensor:
        assert self.held is not None, "declare Stage(queries=True) to read attention"
        hidden, (cos, sin) = self.held
        lone = 0 if cos.shape[0] == 1 else row
        module = self.family.parts.layers[self.layer]
        tokens = tokens.to(hidden.device) if isinstance(tokens, Tensor) else tokens
        return project_heads(module, hidden[row][tokens], which, cos[lone][tokens], sin[lone][tokens])
