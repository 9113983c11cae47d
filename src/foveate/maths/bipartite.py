"""Bipartite soft matching (ToMe, arXiv 2210.09461, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.core.selection import Merge, Selection
from foveate.maths.similarity import nearest, unit


def match(metric: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """One round: tokens at even places are candidates, each for the most similar token at an odd place; the
    `count` most similar pairs are merged.

    Args:
        metric: `[n, d]`.
        count: number of pairs, at most as many as there are even places.

    Returns:
        sources `[count]` (even places) and targets `[count]` (odd places).
    """
    x = unit(metric)
    best, partner = nearest(x[0::2], x[1::2])
    candidate = best.argsort(descending=True, stable=True)[:count]
    return candidate * 2, partner[candidate] * 2 + 1


def bipartite_merge(metric: Tensor, count: int) -> Selection:
    """Repeat rounds of matching until `count` of `n` tokens are left; each is the mean of all that it took in.

    A merged token stands at the place of the one that took the others in. Every round at most halves the number;
    the metric of a merged token is the mean over its members.

    Args:
        metric: `[n, d]`.
        count: at least 1.
    """
    n, device = metric.shape[0], metric.device
    place = torch.arange(n, device=device)  # where the living tokens stand
    label = place.clone()  # which living token every token belongs to
    x, size = metric.float(), torch.ones(n, device=device)
    while (left := len(place)) > count:
        source, target = match(x, min(left - count, left // 2))
        parent = torch.arange(left, device=device).index_copy_(0, source, target)
        total = torch.zeros_like(x).index_add_(0, parent, x * size[:, None])
        size = torch.zeros_like(size).index_add_(0, parent, size)
        gone = torch.zeros(left, dtype=torch.uint8, device=device).index_fill_(0, source, 1)
        alive = gone.argsort(stable=True)[: left - len(source)]
        rank = torch.empty_like(parent).index_copy_(0, alive, torch.arange(len(alive), device=device))
        label = rank[parent[label]]
        place, size = place[alive], size[alive]
        x = total[alive] / size[:, None]
    everyone = torch.arange(n, device=device)
    return Selection(n, place, Merge(everyone[: len(place)], label, everyone, 1 / size[label]))


def merge_pairs(metric: Tensor, count: int, sizes: Tensor) -> Selection:
    """One round of matching: `count` of `n` tokens are merged into others, which become means weighted by sizes.

    Args:
        metric: `[n, d]`.
        count: number of pairs, at most `n // 2`.
        sizes: `[n]` how many tokens each stands for.
    """
    n, device = metric.shape[0], metric.device
    source, target = match(metric, count)
    kept = torch.ones(n, dtype=torch.bool, device=device).index_fill_(0, source, False)
    receivers, segment = target.unique(return_inverse=True)
    entries = torch.cat([receivers, source])
    segments = torch.cat([torch.arange(len(receivers), device=device), segment])
    total = torch.zeros(len(receivers), device=device).index_add_(0, segments, sizes[entries])
    place = kept.long().cumsum(0) - 1
    merge = Merge(place[receivers], segments, entries, sizes[entries] / total[segments])
    return Selection(n, kept.nonzero().squeeze(1), merge)
