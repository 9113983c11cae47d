"""A temporary token that reads the image for a method: appended after the prompt, removed with what it prunes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.attention import attention_logits
from foveate.engine.reader import LayerReader


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


@dataclass(frozen=True)
class Reading:
    """Attention of the probe at one layer over the tokens that were alive there.

    Attributes:
        columns: `[B, n]` columns of the unpruned rows, or None for all.
        logits: `[B, H, P, n]` float32, scaled, before softmax.
        total: `[B, H, P]` log of the softmax normaliser over every real key, cached ones and itself included.
    """

    columns: Tensor | None
    logits: Tensor
    total: Tensor

    def at(self, row: int, columns: Tensor, log_probabilities: bool) -> Tensor:
        """`[H, P, m]` for the given columns of the unpruned row."""
        places = columns
        if self.columns is not None:
            places = torch.searchsorted(self.columns[row].contiguous(), columns.contiguous())
        logits = self.logits[row].index_select(-1, places)
        return logits - self.total[row][..., None] if log_probabilities else logits


def read_probe(reader: LayerReader, length: int, valid: Tensor | None, columns: Tensor | None, rows: int) -> Reading:
    """Record the attention of a probe of `length` tokens, the last ones of every row, at the layer just run.

    Args:
        valid: `[B, past + n]` bool, None if all are real.
        columns: as in `Reading`.
    """
    logits, totals = [], []
    for row in range(rows):
        q = reader.queries(row, slice(-length, None))
        scores = attention_logits(q, reader.keys(row).to(q.device), reader.scale)
        # a probe token sees itself and all before it
        seen = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).tril(scores.shape[-1] - length)
        if valid is not None:
            seen = seen & valid[row].to(q.device)
        totals.append(scores.masked_fill(~seen, float("-inf")).logsumexp(-1))
        logits.append(scores[..., reader.past :])
    return Reading(columns, torch.stack(logits), torch.stack(totals))
