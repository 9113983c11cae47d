"""Density-peak clustering of visual tokens under a spatial limit (ViTCoP, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 1024 * 1024
"""Upper bound for one float32 block of pairwise distances."""
KEEP_BYTES = 256 * 1024 * 1024
"""All distances are kept if they fit in this; else every pass computes them again, block by block."""


def distances(x: Tensor, y: Tensor) -> Tensor:
    """`[a, d]` and `[b, d]` -> `[a, b]` Euclidean distances, `sqrt(sum of squares + 1e-8)`, float32.

    By matrix product, which is many times faster than by differences, but in float64: in float32 it would lose
    the small distances that decide who follows whom.
    """
    if x.device.type == "mps":  # has no float64
        return (torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square() + 1e-8).sqrt()
    same, x = x is y, x.double()
    own = x.square().sum(1)
    y, other = (x, own) if same else (y.double(), y.double().square().sum(1))
    squares = torch.addmm(other, x, y.T, alpha=-2).add_(own[:, None])
    return squares.clamp_(min=0).add_(1e-8).sqrt_().float()


def density_peaks(
    features: Tensor,
    positions: Tensor | None,
    fraction: float,
    kernel_width: float = 8.0,
    reach: float = 0.6,
    complete: bool = False,
) -> Tensor:
    """Cluster tokens around density peaks; a token follows its nearest denser neighbour.

    Density is `rho_i = sum_j exp(-(dist_ij / kernel_width)^2)`. The parent of i is the nearest token j with
    `rho_j >= rho_i` within `reach`; its distance is `delta_i` (infinite without candidates, parent 0 then).
    The `max(1, int(fraction * n))` tokens with the largest `delta * rho` are centres.

    Args:
        features: `[n, d]`, not normalised.
        positions: `[n, 2]` in units of the image's side, or None for no spatial limit.
        complete: give tokens that no centre reaches the label of the centre nearest to them; else they get -1.

    Returns:
        `[n]` int64: labels 0.. in order of `delta * rho`; -1 where following parents never reaches a centre
        (tokens of equal density that point at each other).

    Memory: blocks of rows, at most a few hundred megabytes for 16,384 tokens.
    """
    n = features.shape[0]
    if n == 0:
        return torch.zeros(0, dtype=torch.long, device=features.device)
    x = features.float()
    where = None if positions is None else positions.float()
    rows = _Rows(x)
    rho = _joined([(dist / kernel_width).square_().neg_().exp_().sum(1) for _, dist in rows])
    found = [_nearest_denser(dist, where, rho, block, reach) for block, dist in rows]
    delta, parent = (_joined(parts) for parts in zip(*found, strict=True))
    # not stable on purpose: equal peaks (several infinite ones) then get the labels of the published code
    centres = (-(delta * rho)).argsort()[: max(1, int(fraction * n))]
    labels = _follow(parent, centres)
    return torch.where(labels < 0, rows.to(centres).argmin(1), labels) if complete else labels


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _part(x: Tensor, block: slice) -> Tensor:
    """Rows of a block; all of them are `x` itself."""
    return x if block == slice(0, len(x)) else x[block]


class _Rows:
    """Blocks of rows of the distance matrix, diagonal 0; kept between passes where they are small."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        n = x.shape[0]
        step = max(1, CHUNK_BYTES // (4 * n))
        self.blocks = [slice(start, min(start + step, n)) for start in range(0, n, step)]
        self.kept = [self._make(block) for block in self.blocks] if 4 * n * n <= KEEP_BYTES else None

    def _make(self, block: slice) -> Tensor:
        dist = distances(_part(self.x, block), self.x)
        dist.diagonal(block.start).zero_()
        return dist

    def to(self, columns: Tensor) -> Tensor:
        """`[n, c]` distances of all rows to some."""
        if self.kept is not None and len(self.kept) == 1:
            return self.kept[0][:, columns]
        return distances(self.x, self.x[columns])

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        for number, block in enumerate(self.blocks):
            yield block, self._make(block) if self.kept is None else self.kept[number]


def _nearest_denser(
    dist: Tensor, where: Tensor | None, rho: Tensor, block: slice, reach: float
) -> tuple[Tensor, Tensor]:
    candidate = rho[None] >= rho[block, None]
    if where is not None:
        candidate &= distances(_part(where, block), where) <= reach
    candidate.diagonal(block.start).fill_(False)
    return torch.where(candidate, dist, torch.inf).min(1)


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
