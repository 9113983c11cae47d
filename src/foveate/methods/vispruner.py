"""VisPruner: important tokens by attention, diverse ones by removing duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.budget import Keep
from foveate.core.method import Method
from foveate.core.selection import Choice
from foveate.core.view import ModelInfo, Tap, View
from foveate.errors import ConfigurationError
from foveate.maths.bipartite import match


@dataclass(frozen=True)
class VisPruner(Method):
    """Half of the budget goes to the most attended tokens, half to what remains when duplicates are removed
    (arXiv 2412.01818v2).

    Duplicates are removed in rounds: the tokens left, first in order of attention, are split alternately into two sets,
    and those of the first set that are most similar to one of the second go. The next round begins with what is left of
    the first set, most similar first, then the second set. Which token goes can hang on the last bit of a similarity,
    so another device or batch may keep others.

    Deviation: the published code removes 8 tokens a round, which is 64 rounds for 576 tokens; here a round removes at
    least 1/64 of all that must go, so that large images also take at most 64 rounds. Without a class token, attention
    received from all tokens counts.

    Where the tower cannot be read, projected features and their max-min diversity stand in for it
    (`Method.takes_features`); the trace says so.

    Args:
        keep: share of the tokens that remain, in (0, 1], or their number per image.
        important: share of the kept tokens chosen by attention (published: 0.5).
        step: least number of duplicates removed a round (published: 8).
        block: vision block to read. None: the one that feeds the projector (published).
        queries: without a class token, how many patches the attention received is averaged over (see `Tap`); None: all.
    """

    name = "vispruner"
    paper = "arXiv 2412.01818"
    verified = "official code: kept sets identical (class-token attention; up to ties in the last bit)"

    important: float = 0.5
    step: int = 8
    block: int | None = None
    queries: int | None = Tap.queries

    def __post_init__(self) -> None:
        super().__post_init__()
        Keep(ratio=self.important)
        if self.step < 1:
            raise ConfigurationError(f"VisPruner(step={self.step}) must be at least 1.")

    @property
    def takes_features(self) -> bool:
        return True

    def taps(self, info: ModelInfo) -> Sequence[Tap]:
        return Tap("received", self.block, self.queries), Tap("hidden", self.block)

    def choose(self, view: View, count: int) -> Choice:
        ranked = view.tap(Tap("received", self.block, self.queries)).argsort(descending=True, stable=True)
        important = Keep(ratio=self.important).size(count)
        diverse = self._distinct(ranked[important:], view.tap(Tap("hidden", self.block)), count - important)
        return torch.cat([ranked[:important], diverse]).sort().values

    def _distinct(self, tokens: Tensor, features: Tensor, count: int) -> Tensor:
        step = max(self.step, -(-(len(tokens) - count) // 64))
        while (surplus := len(tokens) - count) > 0:
            if len(tokens) == 1:
                return tokens[:0]
            candidates, _ = match(features[tokens], (len(tokens) + 1) // 2)
            gone = min(step, surplus, len(tokens) // 2)
            tokens = torch.cat([tokens[candidates[gone:]], tokens[1::2]])
        return tokens
