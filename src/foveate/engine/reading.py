"""What was read of a decoder layer: attention of a few tokens, and of a method's probe."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.attention import attention_logits, attention_rows
from foveate.engine.alive import Alive
from foveate.engine.capture import AttentionCall


@dataclass(frozen=True)
class HeardLayer:
    """Queries and keys of a decoder layer, until the stages that read them.

    Attributes:
        index: `[B, n]` columns of the unpruned rows that were alive there, None for all.
        drops: how often tokens had been dropped.
    """

    call: AttentionCall
    index: Tensor | None
    drops: int

    def places(self, alive: Alive, row: int) -> Tensor | None:
        """`[m]` where the tokens alive now stood, None if nothing was dropped since."""
        if alive.drops == self.drops or alive.index is None:
            return None
        now = alive.index[row].to(self.call.q.device)
        if self.index is None:
            return now.clamp(min=0)
        then = self.index[row].to(now.device)
        return torch.searchsorted(then.contiguous(), now.contiguous()).clamp(max=len(then) - 1)


def text_attention(call: AttentionCall, row: int, tokens: Tensor | None, valid: Tensor | None) -> Tensor:
    """`[H, Q, n]` attention probabilities of some tokens over this pass's tokens; the softmax runs over
    cached keys too.

    Args:
        tokens: `[Q]` places in this forward pass; None: the last one that is no probe.
        valid: `[past + n]` bool or None.
    """
    q, k = call.q[row], call.k[row]
    past = k.shape[1] - q.shape[1]
    columns = torch.arange(k.shape[1], device=q.device)
    if tokens is None:
        tokens = torch.tensor([q.shape[1] - 1], device=q.device)
    tokens = tokens.to(q.device)
    allowed = columns[None] <= tokens[:, None] + past if call.mask is None else call.allowed(row, tokens)
    if valid is not None:
        allowed = allowed & valid.to(q.device)[None]
    return attention_rows(q[:, tokens], k, call.scaling, allowed)[..., past:]


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


def read_probe(
    call: AttentionCall, length: int, valid: Tensor | None, columns: Tensor | None, past: int | None = None
) -> Reading:
    """Record the attention of a probe of `length` tokens, the last ones of every row.

    Args:
        valid: `[B, past + n]` bool, None if all are real.
        columns: as in `Reading`.
        past: keys whose logits are left out; None: those that were cached before this pass.
    """
    past = call.k.shape[2] - call.q.shape[2] if past is None else past
    logits, totals = [], []
    for row in range(call.q.shape[0]):
        scores = attention_logits(call.q[row, :, -length:], call.k[row], call.scaling)
        # a probe token sees itself and all before it
        seen = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).tril(scores.shape[-1] - length)
        if valid is not None:
            seen = seen & valid[row].to(scores.device)
        totals.append(scores.masked_fill(~seen, float("-inf")).logsumexp(-1))
        logits.append(scores[..., past:])
    return Reading(columns, torch.stack(logits), torch.stack(totals))
