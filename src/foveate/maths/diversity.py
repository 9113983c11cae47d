"""Greedy subset selection: max-min distance and MAP inference of a determinantal point process."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from foveate.maths.similarity import CHUNK_BYTES, unit

GRAM_BYTES = 400 * 1024 * 1024
"""Up to this size the similarity matrix is computed at once; beyond, row by row."""

CANDIDATES = 128
"""Tokens among which max-min chooses before it looks at the others of their group again."""

FEW = 1024
"""Up to so many tokens, max-min keeps all of them up to date."""

FIRST = 256
"""With so many chosen tokens all others are compared; with later ones only where it matters."""

PARTS = 16
"""In how many parts a nearest neighbour is looked for."""

ROUNDING = 1e-6
"""What two computations of one similarity may differ by."""

OUTLINE = 64
"""Dimensions of a rough choice."""

NARROW = 1024
"""Features of more dimensions are never chosen roughly: their model's layers take so long that choosing does not."""


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
    """`[1]` which of the unit vectors `[n, d]` has its nearest neighbour farthest away.

    Many are compared with a sixteenth of the others at a time: what is nearer to one of those than some token is to
    any cannot be the one, and is compared no further.
    """
    every = torch.arange(len(x), device=x.device)
    parts = [every[first::PARTS] for first in range(PARTS)] if len(x) > FEW else [every]
    rows, closest = every, neighbour(x, every, parts[0])
    if len(parts) > 1:
        promising = closest.topk(CANDIDATES, largest=False).indices
        enough = neighbour(x, promising, every).amin() + ROUNDING
    for part in parts[1:]:
        left = (closest <= torch.maximum(enough, closest.amin())).nonzero().squeeze(1)
        rows, closest = rows[left], closest[left]
        closest = torch.maximum(closest, neighbour(x, rows, part))
    return rows[closest.argmin()].view(1)


def neighbour(x: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    """`[r]` largest similarity of each of `rows` to one of `others`, itself excepted; with bounded memory."""
    step, own, found = max(1, CHUNK_BYTES // (4 * len(others))), x.index_select(0, others), []
    for part in rows.split(step):
        similarity = x.index_select(0, part) @ own.T
        found.append(similarity.masked_fill_(part[:, None] == others, -float("inf")).amax(1))
    return torch.cat(found)


def outline(x: Tensor) -> Tensor:
    """`[n, 64]` coordinates of the directions of `x` `[n, d]` in the space that 64 of them span, evenly spaced.

    Inner products are similarities up to the product of the lengths of the two parts outside that space. Rows that
    are not finite become zeros.
    """
    x, some = x.float(), torch.linspace(0, len(x) - 1, OUTLINE, device=x.device).long()
    basis: Tensor = torch.linalg.qr(unit(x.index_select(0, some)).T).Q
    return (x @ basis).div_(x.norm(dim=1, keepdim=True).clamp(min=1e-12)).nan_to_num_(nan=0.0)


def max_min(
    x: Tensor, count: int, start: Tensor | None = None, weight: Tensor | None = None, *, rough: bool = False
) -> Tensor:
    """Greedy max-min diversity: each next token is the one farthest (cosine) from all chosen so far.

    The same tokens as choosing one by one, in less time: what is chosen can only cover more, so how well a token was
    covered once bounds how well it is now. Only a group of tokens, those that were covered least, is compared with all
    that is chosen, and greedy choice in the group is greedy choice among all while its best is below the others' bound
    (`Coverage`). For the same reason choice in the group goes in rounds; one waits for the device once (`next_round`).

    Args:
        x: `[n, d]`. Rows that are not finite count as similar to nothing (cosine 0 to all others).
        count: how many to choose, those of `start` included.
        start: `[s]` distinct tokens that are chosen already. None: the token whose nearest neighbour is farthest
            (DivPrune, arXiv 2503.02175, algorithm 1).
        weight: `[n]`, not negative (0 where it is not a number): each next token is the one with the greatest product
            of weight and distance (1 - cosine) to the nearest chosen. None: all alike.
        rough: choose by 64 dimensions (`outline`) where more tokens than dimensions come from a narrow model, whose
            prefill the exact choice would lengthen by more than a twentieth. Not for published rules.

    Returns:
        `[count]` indices in order of choice, those of `start` first; of equally covered tokens the first.
    """
    count, start = min(count, len(x)), None if start is None or not len(start) else start
    if start is not None and count <= len(start):
        return start[:count]
    if count <= 0:
        return torch.arange(0, device=x.device)
    weight = None if weight is None else weight.float().nan_to_num(nan=0.0).clamp(min=0)
    n, width = x.shape
    features = outline(x) if rough and 4 * OUTLINE < width < n and width <= NARROW else unit(x)
    known = Coverage(features, most_isolated(features) if start is None else start[:count], weight)
    while known.count < count:
        known.choose(count - known.count)
    return torch.cat(known.chosen)


class Coverage:
    """How similar every token is to the nearest chosen one, brought up to date only where the next choice needs it.

    Attributes:
        chosen: indices in order of choice, in parts.
        count: how many they are.
        covered: `[n]` largest similarity (`weighted`) to one of the first `seen` parts; infinite for what is chosen.
        seen: `[n]` with how many parts each token was compared.
    """

    def __init__(self, features: Tensor, start: Tensor, weight: Tensor | None = None) -> None:
        n = len(features)
        self.features, self.weight, self.count = features, weight, len(start)
        self.all_until = n if n <= FEW else FIRST  # chosen tokens: by fewer, a bound says little
        self.chosen = [start] if n <= FEW else list(start.split(FIRST))
        self.covered = coverage(features, features[self.chosen[0]], weight).index_fill_(0, start, float("inf"))
        self.seen = torch.ones(n, dtype=torch.long, device=features.device)

    def choose(self, most: int) -> None:
        """Take what greedy choice takes next, at most so many; nothing if the group turns out to be covered better."""
        if self.count < self.all_until:
            none = self.covered.new_full((1,), float("inf"))
            new, _ = next_round(self.features, self.covered, self.weight, most, none, True)
            if len(new) < most:
                self.covered = updated(self.features, self.covered, self.weight, new)
                self.seen += 1
        else:
            new = self.from_group(most)
        if len(new):
            self.chosen.append(new)
            self.count += len(new)

    def from_group(self, most: int) -> Tensor:
        """`[m]` what is chosen among the least covered eighth of the tokens."""
        rows, bound = least(self.covered, len(self.covered) // 8)
        features, weight = self.features.index_select(0, rows), of(self.weight, rows)
        covered, known = self.bring_up_to_date(rows, features)
        found, more = [rows[:0]], True
        while more and most:
            new, more = next_round(features, covered, weight, most, bound, known and len(found) == 1)
            if len(new):
                covered = updated(features, covered, weight, new)
                found.append(rows[new])
                most -= len(new)
        self.covered[rows], self.seen[rows] = covered, len(self.chosen) + min(1, len(found) - 1)
        return torch.cat(found)

    def bring_up_to_date(self, rows: Tensor, features: Tensor) -> tuple[Tensor, bool]:
        """Similarity of these tokens to all that is chosen, and whether it was known before."""
        covered, seen = self.covered[rows], self.seen[rows]
        if len(self.chosen) == 1:
            return covered, True
        behind = (seen[:, None] <= torch.arange(len(self.chosen), device=seen.device)).sum(0).tolist()
        longest_ago = seen.argsort()
        for part, many in zip(self.chosen, behind, strict=True):
            if many:
                late, others = longest_ago[:many], self.features.index_select(0, part)
                near = coverage(features.index_select(0, late), others, of(self.weight, rows[late]))
                covered[late] = torch.maximum(covered[late], near)
        return covered, not any(behind)


def coverage(features: Tensor, chosen: Tensor, weight: Tensor | None = None) -> Tensor:
    """`[n]` largest similarity (`weighted`) of each of `features` `[n, d]` to one of `chosen` `[m, d]`, with bounded
    memory."""
    step = max(1, CHUNK_BYTES // (4 * len(features)))
    parts = [(features @ part.T).amax(1) for part in chosen.split(step)]
    return weighted(parts[0] if len(parts) == 1 else torch.stack(parts).amax(0), weight)


def weighted(similarity: Tensor, weight: Tensor | None) -> Tensor:
    """`[..., n]` minus the weighted distances: least for the token to choose next, largest of those to the nearest."""
    return similarity if weight is None else (similarity - 1) * weight


def of(weight: Tensor | None, rows: Tensor) -> Tensor | None:
    """The weights of some tokens."""
    return None if weight is None else weight[rows]


def least(covered: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` least covered tokens, the first of the very least among them, in the order of tokens; and `[1]` how
    well all others are covered at least."""
    if count >= len(covered):
        return torch.arange(len(covered), device=covered.device), covered.new_full((1,), float("inf"))
    found = covered.topk(count + 1, largest=False)
    tokens, first = found.indices[:-1], covered.argmin().view(1)
    # not among them only if all are equal: then it takes the place of one
    tokens[:1] = torch.where((tokens == first).any(), tokens[:1], first)
    return tokens.sort().values, found.values[-1:]


def updated(features: Tensor, covered: Tensor, weight: Tensor | None, new: Tensor) -> Tensor:
    """`[n]` similarity to the nearest chosen token when `new` are chosen too."""
    return torch.maximum(covered, coverage(features, features[new], weight)).index_fill_(0, new, float("inf"))


def next_round(
    features: Tensor, covered: Tensor, weight: Tensor | None, most: int, bound: Tensor, first: bool
) -> tuple[Tensor, bool]:
    """`[m]` tokens that greedy choice takes next, at most `most`, and whether more may follow below the bound.

    Args:
        covered: `[n]` similarity (`weighted`) to the nearest chosen token; infinite for those.
        bound: `[1]` all tokens elsewhere are covered at least so well; what is covered less is chosen.
        first: the first of the least covered is chosen even if a token elsewhere is its equal.
    """
    candidates, limit = least(covered, CANDIDATES)
    own, m = features[candidates], len(candidates)
    pairs = weighted(own @ own.T, of(weight, candidates))
    host = torch.cat([pairs.flatten(), covered[candidates], limit, bound]).cpu().numpy()  # a round's one wait
    similarity, closest, others, elsewhere = host[: m * m].reshape(m, m), host[m * m : -2], host[-2], host[-1]
    order: list[int] = []
    while len(order) < most:
        token = int(closest.argmin())
        below = min(others, elsewhere) if order else elsewhere
        if not closest[token] < below and (order or not first):
            break
        order.append(token)
        np.maximum(closest, similarity[token], out=closest)
        closest[token] = np.inf
    more = bool(min(others, closest.min()) < elsewhere)
    return candidates[torch.tensor(order, dtype=torch.long, device=covered.device)], more


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
