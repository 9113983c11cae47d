"""Attention for a few queries, and attention received, without ever holding an N x N matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CHUNK_BYTES = 16 * 1024 * 1024
"""Upper bound for one float32 block of attention scores; larger ones fall out of a CPU's cache: 64 MiB take twice as
long."""


def attention_rows(q: Tensor, k: Tensor, scale: float, allowed: Tensor | None) -> Tensor:
    """Softmax attention of a few queries; O(Q x n) memory.

    Args:
        q: `[H, Q, d]` queries after rotary embedding.
        k: `[H_kv, n, d]` keys after rotary embedding; heads are shared by groups as in the model.
        allowed: `[Q, n]` bool, or None if every key may be seen.

    Returns:
        `[H, Q, n]` probabilities, float32.
    """
    logits = attention_logits(q, k, scale)
    if allowed is not None:
        logits = logits.masked_fill(~allowed, float("-inf"))
    return logits.softmax(-1)


def attention_logits(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """`q k^T * scale` for grouped-query heads, float32 `[H, Q, n]`; shapes as in `attention_rows`."""
    heads, queries, width = q.shape
    grouped = q.float().reshape(k.shape[0], heads // k.shape[0] * queries, width)
    return (grouped @ k.float().transpose(1, 2) * scale).reshape(heads, queries, k.shape[1])


def received_attention(
    q: Tensor, k: Tensor, scale: float, segments: Sequence[int], max_queries: int | None = None
) -> Tensor:
    """How much attention every token receives, summed over heads, mean over queries.

    Queries are processed in chunks of bounded memory; each only sees the keys of its own segment.

    Args:
        q: `[H, S, d]`.
        k: `[H_kv, S, d]`; heads are shared by groups as in the model.
        segments: lengths of the consecutive segments (images or frames), summing to S.
        max_queries: in longer segments so many evenly spaced queries stand for all; None: all ask.

    Returns:
        `[S]` float32; each segment sums to the number of heads.
    """
    out = torch.zeros(q.shape[1], dtype=torch.float32, device=q.device)
    k = k.repeat_interleave(q.shape[0] // k.shape[0], dim=0)
    start = 0
    for length in segments:
        own = slice(start, start + length)
        asking = q[:, own]
        if max_queries is not None and length > max_queries:
            asking = asking[:, torch.arange(max_queries, device=q.device) * length // max_queries]
        keys = k[:, own].float().transpose(1, 2)
        step = max(1, CHUNK_BYTES // (4 * q.shape[0] * length))
        for first in range(0, asking.shape[1], step):
            block = asking[:, first : first + step].float() * scale
            out[own] += (block @ keys).softmax(-1).sum((0, 1))
        out[own] /= asking.shape[1]
        start += length
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the half-split convention; `x` `[..., n, d]`, `cos`/`sin` broadcast to it."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin
