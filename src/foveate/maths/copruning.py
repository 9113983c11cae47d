"""Cluster-guided selection and merging (ViTCoP's shallow stage, section 3.3)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foveate.core.selection import Merge, Selection

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


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
        labels: `[n]` whole numbers on the host.
        budget: number of tokens to keep, at least 1.
        add_target: add the target's own value to the mean, as the official code does.

    Returns:
        A selection of `min(budget, n)` tokens (fewer when every cluster is a single token).
    """
    norm, owner = key_norm.float().numpy(), labels.numpy()  # numbers of a thousand tokens: no work for a device
    _, cluster = np.unique(owner, return_inverse=True)
    clusters = int(cluster.max()) + 1
    sums = np.zeros(clusters, np.float32)
    np.add.at(sums, cluster, norm)
    if clusters > budget:
        joined = np.full(clusters, budget - 1)
        joined[sums.argsort(kind="stable")[: budget - 1]] = np.arange(budget - 1)
        return _merge_groups(joined[cluster], np.zeros(len(norm), bool), add_target)
    single = _rank_within(norm, cluster) < _quota(cluster, sums, budget)[cluster]
    return _merge_groups(cluster, single, add_target)


def _quota(cluster: Integers, sums: Floats, budget: int) -> Integers:
    """`[K]` individually kept tokens per cluster, at most size - 1 each."""
    n, clusters = len(cluster), len(sums)
    size = np.bincount(cluster, minlength=clusters)
    if n == clusters:
        return np.zeros(clusters, np.int64)
    share = (size - 1).astype(np.float32) / np.float32(n - clusters) * np.float32(budget - clusters)
    quota = np.minimum(share.round().astype(np.int64), size - 1)
    missing = budget - clusters - int(quota.sum())
    order = (-sums if missing < 0 else sums).argsort(kind="stable")
    open_ = (quota < size - 1)[order] if missing > 0 else (quota > 0)[order]
    changed = order[open_][: abs(missing)]
    quota[changed] += 1 if missing > 0 else -1
    return quota


def _rank_within(value: Floats, cluster: Integers) -> Integers:
    """`[n]` rank of each value within its cluster, 0 for the smallest."""
    order = np.lexsort((value, cluster))
    size = np.bincount(cluster)
    first = size.cumsum() - size
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order)) - first[cluster[order]]
    return rank


def _merge_groups(group: Integers, single: npt.NDArray[np.bool_], add_target: bool) -> Selection:
    """Tokens that are `single` stay; the others of each group become one token at the group's middle."""
    members = np.flatnonzero(~single)
    order = members[group[members].argsort(kind="stable")]  # by group, raster order within
    _, size = np.unique(group[order], return_counts=True)
    middle = order[size.cumsum() - size + size // 2]
    keep = single.copy()
    keep[middle] = True
    rank = keep.cumsum() - 1
    segment = np.repeat(np.arange(len(size)), size)
    source, weight = order, 1 / size[segment].astype(np.float32)
    if add_target:
        segment = np.concatenate([segment, np.arange(len(size))])
        source = np.concatenate([source, middle])
        weight = np.concatenate([weight, np.ones(len(middle), np.float32)])
    merge = Merge(*(torch.from_numpy(part) for part in (rank[middle], segment, source, weight)))
    return Selection(len(group), torch.from_numpy(np.flatnonzero(keep)), merge)
