"""PruMerge and PruMerge+: attention outliers that take in their most similar neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.budget import Keep, top
from foveate.core.method import Method
from foveate.core.selection import Choice, Merge, Selection
from foveate.core.view import ModelInfo, Tap, View
from foveate.errors import ConfigurationError
from foveate.maths.similarity import complement, unit


@dataclass(frozen=True)
class PruMerge(Method):
    """Keeps the outliers of the class token's attention and merges similar tokens into them (arXiv 2403.15388).

    Outliers lie above the third quartile by more than 1.5 interquartile ranges, so their number depends on the image.
    To every kept token those of all other tokens that have the most similar keys are added, weighted by their attention
    (as published: the weights are those of a softmax over the image and do not sum to one). With `plus`, evenly spaced
    tokens are kept as well (PruMerge+).

    Deviations: attention is averaged over heads (published: one softmax over all heads joined) and read in the block
    that feeds the projector (published: the last block); merging acts after the projector; the extra token of the
    published code that sums up all pruned ones does not exist. A fixed budget is how later papers compare with it.
    Without a class token, attention received from all tokens counts.

    Where the tower cannot be read, projected features and their max-min diversity stand in for it
    (`Method.takes_features`); the trace says so. Only with a `keep`.

    Args:
        keep: None: as many as there are outliers, at least one, with `plus` also the evenly spaced ones. A share in
            (0, 1] or a number per image fixes how many: the most attended tokens, with `plus` at most half of them by
            attention if there are fewer outliers, the rest evenly spaced.
        plus: PruMerge+.
        spaced: with `plus` and no budget, evenly spaced tokens per outlier; those that are outliers themselves count
            once (published: 3, so 25 % instead of 5.5 %).
        neighbours: tokens that each kept one takes in (published: 32).
        block: vision block to read. None: the one that feeds the projector.
        queries: without a class token, how many patches the attention received is averaged over (see `Tap`); None: all.
    """

    name = "prumerge"
    paper = "arXiv 2403.15388"
    verified = "official code: kept sets identical, merged values (given the joined heads' attention)"
    adaptive = True

    keep: Keep | float | int | None = None
    plus: bool = False
    spaced: int = 3
    neighbours: int = 32
    block: int | None = None
    queries: int | None = Tap.queries

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours < 1 or self.spaced < 1:
            raise ConfigurationError("PruMerge: neighbours and spaced must be at least 1.")

    @property
    def takes_features(self) -> bool:
        return self.keep is not None  # ranks have no outliers

    def taps(self, info: ModelInfo) -> Sequence[Tap]:
        return Tap("received", self.block, self.queries), Tap("keys", self.block)

    def select(self, view: View) -> Choice:
        """The number of tokens depends on the attention where `keep` is None."""
        if self.keep is not None:
            return super().select(view)
        attention, n = self._attention(view), len(view)
        outliers = min(n, count_outliers(attention))
        kept = top(attention, outliers)
        if self.plus:
            even = torch.arange(0, max(1, n - 1), max(1, n // outliers // self.spaced), device=view.device)
            kept = torch.cat([kept, even[~torch.isin(even, kept)]]).sort().values
        return self._merge(view, attention, kept)

    def choose(self, view: View, count: int) -> Choice:
        attention = self._attention(view)
        first = min(count_outliers(attention), max(1, count // 2)) if self.plus else count
        kept = top(attention, first)
        if count > first:
            rest = complement(len(view), kept)
            even = torch.arange(count - first, device=view.device) * len(rest) // (count - first)
            kept = torch.cat([kept, rest[even]]).sort().values
        return self._merge(view, attention, kept)

    def _attention(self, view: View) -> Tensor:
        """`[n]` share of the attention, mean over heads."""
        return view.tap(Tap("received", self.block, self.queries)).float() / max(1, view.info.tower_heads)

    def _merge(self, view: View, attention: Tensor, kept: Tensor) -> Selection:
        keys = unit(view.tap(Tap("keys", self.block)))
        return add_neighbours(keys, attention, kept, self.neighbours)


def add_neighbours(keys: Tensor, attention: Tensor, kept: Tensor, neighbours: int) -> Selection:
    """Every kept token plus its nearest other tokens, each times its attention.

    Args:
        keys: `[n, d]` unit rows.
        attention: `[n]`.
        kept: `[m]` sorted.
        neighbours: how many a token takes in, at most `n - 1`.
    """
    n, m = keys.shape[0], kept.shape[0]
    similarity = keys[kept] @ keys.T
    similarity.scatter_(1, kept[:, None], -float("inf"))
    near = similarity.topk(min(neighbours, n - 1)).indices  # [m, neighbours]
    segment = torch.arange(m, device=keys.device)
    return Selection(
        n,
        kept,
        Merge(
            segment,
            torch.cat([segment, segment.repeat_interleave(near.shape[1])]),
            torch.cat([kept, near.flatten()]),
            torch.cat([torch.ones(m, device=keys.device), attention[near.flatten()]]),
        ),
    )


def count_outliers(attention: Tensor) -> int:
    """How many outliers there are, at least one. Synchronises once."""
    return max(1, int(is_outlier(attention).sum()))


def is_outlier(x: Tensor) -> Tensor:
    """`[n]` bool: above the third quartile by more than 1.5 interquartile ranges (quartiles interpolated)."""
    first, third = torch.quantile(x.float(), torch.tensor([0.25, 0.75], device=x.device))
    above: Tensor = x > third + 1.5 * (third - first)
    return above
