"""DivPrune: the most diverse tokens."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.core.method import Method
from foveate.core.selection import Choice
from foveate.core.view import View
from foveate.maths.diversity import max_min


@dataclass(frozen=True)
class DivPrune(Method):
    """Chooses tokens one by one, each the farthest in cosine distance from all chosen before (arXiv 2503.02175).

    Works on the projected features, needs no attention and no text. The number is rounded down (the published code
    rounds to nearest).

    Args:
        keep: share of the tokens that remain, in (0, 1], or their number per image (published for LLaVA-1.5: 0.098).
    """

    name = "divprune"
    paper = "arXiv 2503.02175"
    verified = "official code: order of choice identical"

    def choose(self, view: View, count: int) -> Choice:
        return max_min(view.hidden, count).sort().values
