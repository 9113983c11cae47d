"""VisionZip: dominant tokens by attention, contextual tokens that take in the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from foveate.core.budget import Keep, top
from foveate.core.method import Method
from foveate.core.selection import Choice
from foveate.core.view import ModelInfo, Tap, View
from foveate.maths.similarity import complement, head_mean, merge_into, nearest, unit


@dataclass(frozen=True)
class VisionZip(Method):
    """Dominant tokens receive most attention; of the others, evenly spaced ones take in the rest (arXiv 2412.04467).

    The rest are assigned by the similarity of their keys, averaged over heads, and a contextual token is the mean of
    itself and of those assigned to it.

    Deviations: the mean is the paper's; the published code adds the mean of the assigned tokens to the target, which
    doubles its scale (`published` does the same). Merging acts after the projector, not before it. The class token,
    which the published code passes to the language model as one of the dominant ones, is not kept (stock LLaVA crops
    it). Without a class token, attention received from all tokens counts, as in the published Qwen2.5-VL version.

    Where the tower cannot be read, projected features and their max-min diversity stand in for it
    (`Method.takes_features`); the trace says so.

    Args:
        keep: share of the tokens that remain, in (0, 1], or their number per image.
        dominant: share of the kept tokens that are dominant; published: 54 of 64, 108 of 128, 162 of 192.
        published: a contextual token is its target plus the mean of those assigned to it.
        block: vision block to read. None: the one that feeds the projector (published).
        queries: without a class token, how many patches the attention received is averaged over (see `Tap`); None: all.
    """

    name = "visionzip"
    paper = "arXiv 2412.04467"
    verified = "official code: kept sets identical, contextual values with published=True (class-token attention)"

    dominant: float = 54 / 64
    published: bool = False
    block: int | None = None
    queries: int | None = Tap.queries

    def __post_init__(self) -> None:
        super().__post_init__()
        Keep(ratio=self.dominant)

    @property
    def takes_features(self) -> bool:
        return True

    def taps(self, info: ModelInfo) -> Sequence[Tap]:
        return Tap("received", self.block, self.queries), Tap("keys", self.block)

    def choose(self, view: View, count: int) -> Choice:
        n = len(view)
        dominant = top(view.tap(Tap("received", self.block, self.queries)), Keep(ratio=self.dominant).size(count))
        if len(dominant) == count:
            return dominant
        rest = complement(n, dominant)
        spacing = len(rest) // (count - len(dominant))
        is_target = torch.arange(0, spacing * (count - len(dominant)), spacing, device=view.device)
        target, merged = rest[is_target], rest[complement(len(rest), is_target)]
        keys = unit(head_mean(view.tap(Tap("keys", self.block)), view.info.tower_heads))
        _, owner = nearest(keys[merged], keys[target])
        kept = torch.cat([dominant, target]).sort().values
        return merge_into(n, kept, target, merged, owner, add_target=self.published)
