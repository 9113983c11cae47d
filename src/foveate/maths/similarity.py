"""Cosine similarity without an N x N matrix, and merging tokens into their nearest kept one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.core.selection import Merge, Selection

CHUNK_BYTES = 64 * 1024 * 1024
"""Upper bound for one float32 block of similarities."""


def unit(x: Tensor) -> Tensor:
    """`[n, d]` rows of length 1, float32. A row with a value that is not finite becomes zeros, similar to nothing, so
    that choices made in an order stay distinct."""
    return F.normalize(x.float(), dim=-1).nan_to_num_(nan=0.0)


def head_mean(keys: Tensor, heads: int) -> Tensor:
    """`[n, d]` mean over heads of keys `[n, heads * d]`; with 0 heads (unknown) the keys as they are."""
    return keys.float().unflatten(1, (heads, -1)).mean(1) if heads else keys


def nearest(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """For every row of `x` `[a, d]` the largest inner product with a row of `y` `[b, d]`, and which row that is.

    Returns:
        values `[a]` and indices `[a]`; memory is one block of rows.
    """
    step = max(1, CHUNK_BYTES // (4 * max(y.shape[0], 1)))
    found = [(block @ y.T).max(1) for block in x.split(step)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def closest(x: Tensor, kept: Tensor) -> Tensor:
    """`[n]` which of the rows `kept` `[m]` of `x` `[n, d]` each row is most like (cosine); `kept` are it themselves."""
    rows = unit(x)
    _, found = nearest(rows, rows[kept])
    return found.index_copy_(0, kept, torch.arange(len(kept), device=kept.device))


def complement(n: int, kept: Tensor) -> Tensor:
    """Sorted indices `[n - m]` of 0..n-1 that are not among `kept` `[m]` (distinct); no host synchronisation."""
    taken = torch.zeros(n, dtype=torch.uint8, device=kept.device).index_fill_(0, kept, 1)
    return taken.argsort(stable=True)[: n - kept.shape[0]]


def merge_into(
    n: int, kept: Tensor, receivers: Tensor, sources: Tensor, owner: Tensor, add_target: bool = False
) -> Selection:
    """Keep some of `n` tokens, some of which become the mean of themselves and of the tokens they take in.

    Args:
        kept: `[m]` sorted indices of the survivors.
        receivers: `[r]` those of them that take tokens in, each once.
        sources: `[s]` the tokens taken in.
        owner: `[s]` for each source, which receiver takes it (0..r-1).
        add_target: a receiver becomes itself plus the mean of what it takes in, as some published code does.
    """
    r, device = len(receivers), kept.device
    size = torch.zeros(r, device=device).index_add_(0, owner, torch.ones(len(sources), device=device))
    segment = torch.cat([torch.arange(r, device=device), owner])
    weight = 1 / (size + 1)[segment]
    if add_target:
        weight = torch.cat([torch.ones(r, device=device), 1 / size[owner]])
    target = torch.searchsorted(kept, receivers)
    return Selection(n, kept, Merge(target, segment, torch.cat([receivers, sources]), weight))


def rank_within(score: Tensor, group: Tensor, groups: int) -> Tensor:
    """`[n]` rank of each score `[n]` within its group `[n]` (0..groups-1), 0 for the highest; ties by index."""
    order = score.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    size = torch.zeros(groups, dtype=torch.long, device=score.device).index_add_(0, group, torch.ones_like(group))
    start = size.cumsum(0) - size
    place = torch.arange(len(order), device=score.device) - start[group[order]]
    return torch.empty_like(order).index_copy_(0, order, place)
