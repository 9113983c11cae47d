"""FasterVLM: keep what the class token attends to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from foveate.core.method import Score, Stage
from foveate.core.view import ModelInfo, Tap, View


@dataclass(frozen=True)
class FasterVLM(Score):
    """Keeps the tokens with the highest class-token attention in the vision tower (arXiv 2412.01818v1).

    On towers without a class token: attention received from all tokens of the image in the last block with global
    attention (our substitute).

    Where the tower cannot be read, projected features and their max-min diversity stand in for it
    (`Method.takes_features`); the trace says so. Not with a threshold.

    Args:
        keep: average visual tokens per decoder layer, as a ratio, count or `Keep`; a threshold is on the attention
            summed over heads.
        layer: where to prune, 0 = before the language model (the paper's).
        block: vision block to read. None: the one that feeds the projector (published).
        queries: without a class token, how many patches the attention received is averaged over (see `Tap`); None: all.
    """

    paper = "arXiv 2412.01818"
    verified = "official code: kept sets identical (class-token attention)"

    layer: int = 0
    block: int | None = None
    queries: int | None = Tap.queries

    def stages(self, info: ModelInfo) -> Sequence[Stage]:
        return (Stage(self.layer),)

    @property
    def takes_features(self) -> bool:
        return self.budget.threshold is None  # which would be one on attention

    def taps(self, info: ModelInfo) -> Sequence[Tap]:
        return (Tap("received", self.block, self.queries),)

    def score(self, view: View) -> Tensor:
        return view.tap(Tap("received", self.block, self.queries))
