"""ToMe: merge the most similar tokens pairwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foveate.core.method import Method
from foveate.core.selection import Choice
from foveate.core.view import ModelInfo, Tap, View
from foveate.maths.bipartite import bipartite_merge
from foveate.maths.similarity import head_mean


@dataclass(frozen=True)
class ToMe(Method):
    """Bipartite soft matching on the keys of one vision block (mean over heads), repeated until the budget is met
    (arXiv 2210.09461).

    Merged tokens are means over all their members.

    Deviation: the paper merges a few tokens in every block of the vision tower; here the finished tokens are merged
    before the language model, so that the tower stays stock (as "ToMe" is usually run as a baseline for LVLMs).
    Unverified: no official output or published number was compared.

    Where the tower cannot be read, projected features and their max-min diversity stand in for it
    (`Method.takes_features`); the trace says so.

    Args:
        keep: share of the tokens that remain, in (0, 1], or their number per image.
        block: vision block whose keys are compared. None: the one that feeds the projector.
    """

    name = "tome"
    paper = "arXiv 2210.09461"

    block: int | None = None

    @property
    def takes_features(self) -> bool:
        return True

    def taps(self, info: ModelInfo) -> Sequence[Tap]:
        return (Tap("keys", self.block),)

    def choose(self, view: View, count: int) -> Choice:
        return bipartite_merge(head_mean(view.tap(Tap("keys", self.block)), view.info.tower_heads), count)
