"""What a probe read of the image, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.attention import attention_logits
from foveate.engine.reader import LayerReader


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
