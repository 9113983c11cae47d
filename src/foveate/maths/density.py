"""Density-peak clustering by nearest neighbours (DPC-KNN), as SparseVLM recycles tokens with."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.maths.clustering import CHUNK_BYTES
from foveate.maths.similarity import complement


def dpc_knn(x: Tensor, clusters: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """Centres are dense and far from anything denser; every other token joins the nearest centre.

    Distances are Euclidean over `sqrt(d)`; density is `exp(-mean squared distance to the nearest neighbours)` (the
    token itself counts as one, as in the published code); a token's separation is its distance to the nearest denser
    token, or the largest distance at all for the densest. Of equally dense tokens the first counts as denser.

    Args:
        x: `[n, d]`.
        clusters: number of centres, at most `n`.
        neighbours: how many neighbours the density is taken over, at most `n`.

    Returns:
        centres `[clusters]` (sorted) and the owner `[n - clusters]` (0..clusters-1) of each other token, which
        `complement(n, centres)` lists. Memory is one block of rows.
    """
    n = x.shape[0]
    x = x.float() / x.shape[1] ** 0.5
    step = max(1, CHUNK_BYTES // (4 * n))
    near = [torch.cdist(b, x).topk(neighbours, largest=False).values.square().mean(1) for b in x.split(step)]
    density = (-torch.cat(near)).exp()
    rank = torch.empty(n, dtype=torch.long, device=x.device)
    rank[density.argsort(descending=True, stable=True)] = torch.arange(n, device=x.device)
    separation = []
    for start in range(0, n, step):
        distance = torch.cdist(x[start : start + step], x)
        denser = rank[None] < rank[start : start + step, None]
        apart = distance.masked_fill(~denser, float("inf")).amin(1)
        separation.append(torch.where(apart.isinf(), distance.amax(1), apart))
    score = torch.cat(separation) * density
    centres = score.argsort(descending=True, stable=True)[:clusters].sort().values
    others = x[complement(n, centres)]
    return centres, torch.cdist(others, x[centres]).argmin(1)
