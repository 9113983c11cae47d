"""Cluster-guided selection and merging (ViTCoP's shallow stage, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.core.selection import Merge, Selection


def select_and_merge(key_norm: Tensor, labels: Tensor, budget: int, add_target: bool) -> Selection:
    """Keep `budget` tokens that represent every cluster.

    A small key norm marks a salient token. With K clusters (unlabelled tokens count as one):

    - K > budget: the `budget - 1` clusters with the smallest summed norm become one token each, all others
      together one more.
    - K <= budget: every cluster gives one merged token; the remaining places go to the clusters in proportion
      to their size, to the tokens with the smallest norms, which stay as they are.

    A merged token stands at the middle of its sorted group and is the group's mean.

    Args:
        key_norm: `[n]` on the host.
        labels: `[n]` int64 on the host.
        budget: number of tokens to keep, at least 1.
        add_target: add the target's own value to the mean, as the official code does.

    Returns:
        A selection of `min(budget, n)` tokens (fewer when every cluster is a single token).
    """
    norm, (_, cluster) = key_norm.float(), labels.unique(return_inverse=True)
    clusters = int(cluster.max()) + 1
    sums = torch.zeros(clusters).index_add_(0, cluster, norm)
    if clusters > budget:
        group = torch.full((clusters,), budget - 1).index_copy_(
            0, sums.argsort(stable=True)[: budget - 1], torch.arange(budget - 1)
        )[cluster]
        single = torch.zeros(len(norm), dtype=torch.bool)
    else:
        group = cluster
        single = _rank_within(norm, cluster) < _quota(cluster, sums, budget)[cluster]
    return _merge_groups(group, single, add_target)


def _quota(cluster: Tensor, sums: Tensor, budget: int) -> Tensor:
    """`[K]` individually kept tokens per cluster, at most size - 1 each."""
    n, clusters = len(cluster), len(sums)
    size = torch.bincount(cluster, minlength=clusters)
    if n == clusters:
        return torch.zeros(clusters, dtype=torch.long)
    share = (size - 1).float() / (n - clusters) * (budget - clusters)
    quota = torch.minimum(share.round().long(), size - 1)
    missing = budget - clusters - int(quota.sum())
    order = sums.argsort(stable=True, descending=missing < 0)
    open_ = (quota < size - 1)[order] if missing > 0 else (quota > 0)[order]
    changed = order[open_][: abs(missing)]
    quota[changed] += 1 if missing > 0 else -1
    return quota


def _rank_within(value: Tensor, cluster: Tensor) -> Tensor:
    """`[n]` rank of each value within its cluster, 0 for the smallest."""
    by_value = value.argsort(stable=True)
    order = by_value[cluster[by_value].argsort(stable=True)]
    size = torch.bincount(cluster)
    first = size.cumsum(0) - size
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - first[cluster[order]]
    return rank


def _merge_groups(group: Tensor, single: Tensor, add_target: bool) -> Selection:
    """Tokens that are `single` stay; the others of each group become one token at the group's middle."""
    members = (~single).nonzero().squeeze(1)
    order = members[group[members].argsort(stable=True)]  # by group, raster order within
    present, size = group[order].unique_consecutive(return_counts=True)
    middle = order[size.cumsum(0) - size + size // 2]
    keep = single.clone()
    keep[middle] = True
    rank = keep.long().cumsum(0) - 1
    segment = torch.repeat_interleave(torch.arange(len(present)), size)
    source, weight = order, 1 / size[segment].float()
    if add_target:
        segment = torch.cat([segment, torch.arange(len(present))])
        source, weight = torch.cat([source, middle]), torch.cat([weight, torch.ones(len(middle))])
    return Selection(len(group), keep.nonzero().squeeze(1), Merge(rank[middle], segment, source, weight))
