"""Greedy subset selection: max-min distance and MAP inference of a determinantal point process."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from foveate.maths.similarity import CHUNK_BYTES, unit

GRAM_BYTES = 400 * 1024 * 1024
"""Up to this size the similarity matrix is computed at once; beyond, row by row."""

CANDIDATES = 128
"""Tokens among which max-min chooses before it looks at all of them again."""


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


def most_isolated(x: Tensor) -> Tensor:
    """`[1]` which of the unit vectors `[n, d]` has its nearest neighbour farthest away."""
    step = max(1, CHUNK_BYTES // (4 * x.shape[0]))
    closest = []
    for start in range(0, x.shape[0], step):
        block = x[start : start + step] @ x.T
        block.diagonal(start).fill_(-float("inf"))
        closest.append(block.amax(1))
    return torch.cat(closest).argmin().view(1)


def max_min(x: Tensor, count: int, start: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    """Greedy max-min diversity: each next token is the one farthest (cosine) from all chosen so far.

    Chosen in rounds, which gives the same tokens as choosing one by one: the tokens least covered are candidates,
    and greedy choice among them is greedy choice among all while its best is less covered than every other token was
    when the round began, since what is chosen can only cover more. One matrix product a round then updates all tokens,
    instead of one a token; a round waits for the device once.

    Args:
        x: `[n, d]`. Rows that are not finite count as similar to nothing (cosine 0 to all others).
        count: how many to choose, those of `start` included.
        start: `[s]` distinct tokens that are chosen already. None: the token whose nearest neighbour is farthest
            (DivPrune, arXiv 2503.02175, algorithm 1), which takes all similarities and so most of the time.
        weight: `[n]`, not negative: each next token is the one with the greatest product of weight and distance
            (1 - cosine) to the nearest chosen. None: all alike.

    Returns:
        `[count]` indices in order of choice, those of `start` first.
    """
    features = unit(x)
    chosen = [most_isolated(features) if start is None else start[:count]]
    left = count - len(chosen[0])
    covered = None
    while left > 0:
        new = chosen[-1]
        near = weighted(coverage(features, new), weight)
        covered = (near if covered is None else torch.maximum(covered, near)).index_fill_(0, new, float("inf"))
        found = next_round(features, covered, left, weight)
        chosen.append(found)
        left -= len(found)
    return torch.cat(chosen)


def coverage(features: Tensor, chosen: Tensor) -> Tensor:
    """`[n]` largest similarity of every token to one of the chosen, with bounded memory."""
    step = max(1, CHUNK_BYTES // (4 * len(features)))
    parts = [(features @ features[part].T).amax(1) for part in chosen.split(step)]
    return parts[0] if len(parts) == 1 else torch.stack(parts).amax(0)


def weighted(similarity: Tensor, weight: Tensor | None) -> Tensor:
    """`[..., n]` minus the weighted distances: least for the token to choose next, largest of those to the nearest."""
    return similarity if weight is None else (similarity - 1) * weight


def next_round(features: Tensor, covered: Tensor, most: int, weight: Tensor | None = None) -> Tensor:
    """`[m]` tokens that greedy choice takes next, at least one and at most `most`.

    Args:
        covered: `[n]` weighted similarity to the nearest chosen token; infinite for those.
    """
    own, worth, open_, limit, candidates = features, weight, covered, [], None
    if len(covered) > CANDIDATES:
        least = covered.topk(CANDIDATES + 1, largest=False)
        limit = [least.values[-1:]]
        # in the order of tokens, and with the first of equals among them, as a search through all would go
        first = (covered == least.values[0]).to(torch.uint8).argmax().view(1)
        candidates = torch.cat([first, least.indices[:-1]]).sort().values
        twice = torch.cat([candidates.new_zeros(1, dtype=torch.bool), candidates[1:] == candidates[:-1]])
        own, open_ = features[candidates], covered[candidates].masked_fill(twice, float("inf"))
        worth = None if weight is None else weight[candidates]
    m = len(own)
    host = torch.cat([weighted(own @ own.T, worth).flatten(), open_, *limit]).cpu().numpy()  # the one wait of a round
    similarity, closest = host[: m * m].reshape(m, m), host[m * m :][:m]
    bound = host[-1] if limit else np.inf
    order: list[int] = []
    while len(order) < most:
        token = int(closest.argmin())
        if order and not closest[token] < bound:
            break
        order.append(token)
        np.maximum(closest, similarity[token], out=closest)
        closest[token] = np.inf
    found = torch.tensor(order, device=covered.device)
    return found if candidates is None else candidates[found]


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
