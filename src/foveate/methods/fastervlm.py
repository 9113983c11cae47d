"""FasterVLM: keep what the class token attends to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from foveate.core.method import ModelInfo, Score, Tap
from foveate.core.view import View


@dataclass(frozen=True)
class FasterVLM(Score):
    """Keeps the tokens with the highest class-token attention in the vision tower (arXiv 2412.01818v1).

    On towers without a class token: attention received from all tokens of the image in the last block with global
    attention (our substitute). Unverified: no official output or published number was compared.

    Args:
        keep: budget at the stage (ratio, count or `Keep`; a threshold is on the attention summed over heads).
        layer: stage layer, 0 = before the language model (the paper's).
        block: vision block to read. None: the one that feeds the projector (published).
    """

    paper = "arXiv 2412.01818"

    block: int | None = None

    def taps(self, info: ModelInfo) -> Sequence[Tap]:
        return (Tap("received", self.block),)

    def score(self, view: View) -> Tensor:
        return view.tap(Tap("received", self.block))
