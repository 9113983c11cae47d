"""Density-peak clustering of visual tokens under a spatial limit (ViTCoP, section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 1024 * 1024
"""Upper bound for one float32 block of pairwise distances."""


def distances(x: Tensor, y: Tensor) -> Tensor:
    """`[a, d]` and `[b, d]` -> `[a, b]` Euclidean distances, `sqrt(sum of squares + 1e-8)`.

    From differences, not from products: the usual expansion loses the small distances that decide ties.
    """
    return (torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square() + 1e-8).sqrt()


def density_peaks(
    features: Tensor, positions: Tensor | None, fraction: float, kernel_width: float = 8.0, reach: float = 0.6
) -> Tensor:
    """Cluster tokens around density peaks; a token follows its nearest denser neighbour.

    Density is `rho_i = sum_j exp(-(dist_ij / kernel_width)^2)`. The parent of i is the nearest token j with
    `rho_j >= rho_i` within `reach`; its distance is `delta_i` (infinite without candidates, parent 0 then).
    The `max(1, int(fraction * n))` tokens with the largest `delta * rho` are centres.

    Args:
        features: `[n, d]`, not normalised; computed in float32.
        positions: `[n, 2]` in units of the image's side, or None for no spatial limit.

    Returns:
        `[n]` int64: labels 0.. in order of `delta * rho`; -1 where following parents never reaches a centre
        (tokens of equal density that point at each other).

    Memory: blocks of rows; O(n) beside them.
    """
    n = features.shape[0]
    if n == 0:
        return torch.zeros(0, dtype=torch.long, device=features.device)
    x = features.float()
    where = None if positions is None else positions.float()
    step = max(1, CHUNK_BYTES // (4 * n))
    blocks = [slice(start, min(start + step, n)) for start in range(0, n, step)]
    rho = torch.cat([_density(x, block, kernel_width) for block in blocks])
    found = [_nearest_denser(x, where, rho, block, reach) for block in blocks]
    delta, parent = (torch.cat(parts) for parts in zip(*found, strict=True))
    # not stable on purpose: equal peaks (several infinite ones) then get the labels of the published code
    centres = (-(delta * rho)).argsort()[: max(1, int(fraction * n))]
    return _follow(parent, centres)


def _self_distance(block: slice, dist: Tensor) -> Tensor:
    rows = torch.arange(block.stop - block.start, device=dist.device)
    return dist.index_put_((rows, rows + block.start), torch.zeros((), device=dist.device))


def _density(x: Tensor, block: slice, width: float) -> Tensor:
    return (-(_self_distance(block, distances(x[block], x)) / width).square()).exp().sum(1)


def _nearest_denser(x: Tensor, where: Tensor | None, rho: Tensor, block: slice, reach: float) -> tuple[Tensor, Tensor]:
    dist = distances(x[block], x)
    candidate = rho[None] >= rho[block, None]
    if where is not None:
        candidate &= distances(where[block], where) <= reach
    rows = torch.arange(block.stop - block.start, device=x.device)
    candidate[rows, rows + block.start] = False
    return dist.masked_fill_(~candidate, float("inf")).min(1)


def _follow(parent: Tensor, centres: Tensor) -> Tensor:
    """Label of the centre that each token reaches by following parents; pointers double every round."""
    n = parent.shape[0]
    labels = torch.full((n,), -1, dtype=torch.long, device=parent.device)
    labels[centres] = torch.arange(len(centres), device=parent.device)
    target = parent.clone()
    target[centres] = centres
    for _ in range(math.ceil(math.log2(n)) + 1 if n > 1 else 1):
        target = target[target]
    return labels[target]


def nearest_centre(features: Tensor, labels: Tensor) -> Tensor:
    """Give unlabelled tokens (-1) the label of the nearest labelled one; no-op if there is none.

    Args:
        features: `[n, d]`.
        labels: `[n]` from `density_peaks`.
    """
    x = features.float()
    step = max(1, CHUNK_BYTES // (4 * max(len(labels), 1)))
    filled = []
    for start in range(0, len(labels), step):
        dist = distances(x[start : start + step], x).masked_fill_((labels < 0)[None], float("inf"))
        filled.append(labels[dist.argmin(1)])
    return torch.where(labels < 0, torch.cat(filled), labels) if filled else labels
