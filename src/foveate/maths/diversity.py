"""Greedy subset selection: max-min distance and MAP inference of a determinantal point process."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.maths.similarity import CHUNK_BYTES, unit

GRAM_BYTES = 400 * 1024 * 1024
"""Up to this size the similarity matrix is computed at once; beyond, row by row."""


class Similarity:
    """Cosine similarities of one token to all, `[n]`, for a token whose index stays on the device.

    Args:
        x: `[n, d]` features of any scale; computed in float32.
        rows: about how many rows will be read; few rows are not worth the whole matrix.
    """

    def __init__(self, x: Tensor, rows: int) -> None:
        self.unit = unit(x)
        n = x.shape[0]
        self.gram = self.unit @ self.unit.T if 4 * n * n <= GRAM_BYTES and rows > 16 else None

    def to(self, index: Tensor) -> Tensor:
        """`index` is `[1]`: an index that is a tensor needs no copy to the host."""
        if self.gram is not None:
            return self.gram.index_select(0, index).squeeze(0)
        return (self.unit @ self.unit.index_select(0, index).T).squeeze(1)


def most_isolated(similarity: Similarity) -> Tensor:
    """`[1]` the token whose nearest neighbour is farthest."""
    x = similarity.unit
    step = max(1, CHUNK_BYTES // (4 * x.shape[0]))
    closest = []
    for start in range(0, x.shape[0], step):
        block = x[start : start + step] @ x.T
        block.diagonal(start).fill_(-float("inf"))
        closest.append(block.amax(1))
    return torch.cat(closest).argmin().view(1)


def max_min(x: Tensor, count: int) -> Tensor:
    """Greedy max-min diversity: each next token is the one farthest (cosine) from all chosen so far.

    Starts with the token whose nearest neighbour is farthest (DivPrune, arXiv 2503.02175, algorithm 1).

    Args:
        x: `[n, d]`. Rows that are not finite count as similar to nothing (cosine 0 to all others).

    Returns:
        `[count]` indices in order of choice.
    """
    similarity = Similarity(x, count)
    token = most_isolated(similarity)
    chosen = [token]
    closest = similarity.to(token).index_fill_(0, token, float("inf"))
    for _ in range(count - 1):
        token = closest.argmin().view(1)
        chosen.append(token)
        torch.maximum(closest, similarity.to(token), out=closest)
        closest.index_fill_(0, token, float("inf"))
    return torch.cat(chosen)


def greedy_map(x: Tensor, quality: Tensor, count: int) -> Tensor:
    """Greedy MAP of the determinantal point process with kernel `L_ij = quality_i cos(x_i, x_j) quality_j`.

    Each step adds the token that multiplies the determinant most, from an incremental Cholesky factorisation
    (Chen et al., NeurIPS 2018, algorithm 1); `O(count^2 n)` time and `count * n` floats. The kernel's rank is at
    most `d`: every set of more than `d` tokens has determinant 0, so after every `d` steps the choice begins anew
    among the tokens left.

    Args:
        x: `[n, d]`. Rows that are not finite count as similar to nothing.
        quality: `[n]`, non-negative; 0 where it is not finite.

    Returns:
        `[count]` indices in order of choice.
    """
    similarity = Similarity(x, count)
    quality = quality.float().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    fresh = quality.square()  # what a first token would add
    gain, tiny = fresh.clone(), 1e-6 * fresh.amax()
    factor = torch.zeros(min(count, x.shape[1]), x.shape[0], device=x.device)
    chosen: list[Tensor] = []
    for number in range(count):
        step = number % factor.shape[0]
        if number and step == 0:
            gain = fresh.index_fill(0, torch.cat(chosen), -float("inf"))
        token = gain.argmax().view(1)
        chosen.append(token)
        row = similarity.to(token) * quality * quality.index_select(0, token)
        if step:
            known = factor[:step]
            row = row - known.index_select(1, token).squeeze(1) @ known
        added = gain.index_select(0, token)
        row = torch.where(added > tiny, row / added.clamp(min=1e-30).sqrt(), 0.0)  # below: rounding errors only
        factor[step] = row
        gain = (gain - row.square()).index_fill_(0, token, -float("inf"))
    return torch.cat(chosen)
