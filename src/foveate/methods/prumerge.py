"""PruMerge and PruMerge+: attention outliers that take in their most similar neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.budget import Keep, top
from foveate.core.method import Choice, Method
from foveate.core.selection import Merge, Selection
from foveate.core.view import ModelInfo, Tap, View
from foveate.errors import ConfigurationError
from foveate.maths.similarity import complement, unit


@dataclass(frozen=True)
class PruMerge(Method):
    """Keeps the outliers of the class token's attention and merges similar tokens into them (arXiv 2403.15388).

    Outliers lie above the third quartile by more than 1.5 interquartile ranges, so their number depends on the image.
    Every kept token gets the tokens with the most similar keys added, weighted by their attention (as published: the
    weights are those of a softmax over the image and are not normalised to one). With `plus`, evenly spaced tokens
    are kept as well (PruMerge+).

    Deviations: attention is averaged over heads (published: one softmax over all heads joined) and read in the block
    that feeds the projector (published: the last block); merging acts after the projector; the extra token of the
    published code that sums up all pruned ones does not exist. A fixed budget is how later papers compare with it.
    Without a class token, attention received from all tokens counts. Unverified: no official output or published
    number was compared.

    Args:
        keep: None: as many as there are outliers (times `spread` with `plus`), at least one. A share in (0, 1] or
            a number per image fixes how many: the most attended tokens, with `plus` at most half of them by
            attention if there are fewer outliers, the rest evenly spaced.
        plus: PruMerge+.
        spread: with `plus` and no budget, kept tokens per outlier (published: about 4; 25 % instead of 5.5 %).
        neighbours: tokens that each kept one takes in (published: 32).
        block: vision block to read. None: the one that feeds the projector.
    """

    name = "prumerge"
    paper = "arXiv 2403.15388"
    adaptive = True

    keep: Keep | float | int | None = None
    plus: bool = False
    spread: int = 4
    neighbours: int = 32
    block: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours < 1 or self.spread < 1:
            raise ConfigurationError("PruMerge: neighbours and spread must be at least 1.")

    def taps(self, info: ModelInfo) -> Sequence[Tap]:
        return Tap("received", self.block), Tap("keys", self.block)

    def select(self, view: View) -> Choice:
        """The number of tokens depends on the attention where `keep` is None."""
        if self.keep is not None:
            return super().select(view)
        attention = self._attention(view)
        outliers = count_outliers(attention)
        count = outliers * self.spread if self.plus else outliers
        if count >= len(view):
            return Selection.everything(len(view), view.device)
        return self._keep(view, attention, outliers, count)

    def choose(self, view: View, count: int) -> Choice:
        attention = self._attention(view)
        first = min(count_outliers(attention), max(1, count // 2)) if self.plus else count
        return self._keep(view, attention, first, count)

    def _attention(self, view: View) -> Tensor:
        attention = view.tap(Tap("received", self.block))
        return attention / attention.sum()

    def _keep(self, view: View, attention: Tensor, first: int, count: int) -> Selection:
        """The `first` by attention, evenly spaced ones up to `count`, and what they take in."""
        kept = top(attention, first)
        if count > first:
            rest = complement(len(view), kept)
            spaced = torch.arange(count - first, device=view.device) * len(rest) // (count - first)
            kept = torch.cat([kept, rest[spaced]]).sort().values
        return self._merge(unit(view.tap(Tap("keys", self.block))), attention, kept)

    def _merge(self, keys: Tensor, attention: Tensor, kept: Tensor) -> Selection:
        n, m = keys.shape[0], kept.shape[0]
        rest = complement(n, kept)
        taken = min(self.neighbours, n - m)
        near = rest[(keys[kept] @ keys[rest].T).topk(taken).indices]  # [m, taken]
        rank = torch.arange(m, device=keys.device)
        return Selection(
            n,
            kept,
            Merge(
                rank,
                torch.cat([rank, rank.repeat_interleave(taken)]),
                torch.cat([kept, near.flatten()]),
                torch.cat([torch.ones(m, device=keys.device), attention[near.flatten()].float()]),
            ),
        )


def count_outliers(attention: Tensor) -> int:
    """How many outliers there are, at least one. Synchronises once."""
    return max(1, int(is_outlier(attention).sum()))


def is_outlier(x: Tensor) -> Tensor:
    """`[n]` bool: above the third quartile by more than 1.5 interquartile ranges (quartiles interpolated)."""
    first, third = torch.quantile(x.float(), torch.tensor([0.25, 0.75], device=x.device))
    return x > third + 1.5 * (third - first)
