"""HiPrune: anchors, their neighbours and registers, from two depths of the vision tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.budget import top
from foveate.core.grid import Grid
from foveate.core.method import Method
from foveate.core.selection import Choice
from foveate.core.view import ModelInfo, Tap, View
from foveate.errors import ConfigurationError


@dataclass(frozen=True)
class HiPrune(Method):
    """Keeps anchors (most attended in a middle block), the four neighbours of each, and fills up with registers (most
    attended in the deep block) (arXiv 2508.00553).

    Deviations: neighbours end at the image's border, unless `wrap` is set. Attention is the class token's where there
    is one (published: received from all tokens on every tower).

    Where the tower cannot be read, projected features and their max-min diversity stand in for it
    (`Method.takes_features`); the trace says so.

    Args:
        keep: share of the tokens that remain, in (0, 1], or their number per image.
        alpha: share of the budget meant for anchors and their neighbours (published: 0.1).
        wrap: an anchor at the left or right border has a neighbour in the row before or behind, and one at the top or
            bottom the first or the last token of all, as in the published code. Off, because it follows no picture; it
            makes no difference to what the built-in LLaVA answers at 1/9 (90 questions of `scenes:val`, none answered
            otherwise).
        object_block: middle block, 0-based. None: the published ninth of 24 (CLIP) or sixteenth of 32 (towers
            without a class token), scaled to the depth.
        deep_block: deep block. None: the one that feeds the projector (published).
        queries: without a class token, how many patches the attention received is averaged over (see `Tap`); None: all.
    """

    name = "hiprune"
    paper = "arXiv 2508.00553"
    verified = "official code: kept sets identical with wrap=True"
    takes_prompt = False

    alpha: float = 0.1
    wrap: bool = False
    object_block: int | None = None
    deep_block: int | None = None
    queries: int | None = Tap.queries

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ConfigurationError(f"HiPrune(alpha={self.alpha}) must lie in [0, 1].")

    @property
    def takes_features(self) -> bool:
        return True

    def taps(self, info: ModelInfo) -> Sequence[Tap]:
        return self._middle(info), Tap("received", self.deep_block, self.queries)

    def _middle(self, info: ModelInfo) -> Tap:
        if self.object_block is not None:
            return Tap("received", self.object_block, self.queries)
        depth = 9 / 24 if info.has_class_token else 16 / 32
        return Tap("received", max(1, round(depth * info.tower_blocks)) - 1, self.queries)

    def choose(self, view: View, count: int) -> Choice:
        middle, deep = view.tap(self._middle(view.info)), view.tap(Tap("received", self.deep_block, self.queries))
        anchors = top(middle, round(count * self.alpha / 5))  # each brings up to four neighbours
        anchor = torch.zeros(len(view), device=view.device).index_fill_(0, anchors, 1)
        near = next_in_order(anchors, len(view), view.grid.w) if self.wrap else next_to(anchor, view.grids)
        # whole numbers rank the kinds, the attention (a share of the total) ranks within a kind
        return top(anchor + near + deep / deep.sum(), count)


def next_to(marks: Tensor, grids: Sequence[Grid]) -> Tensor:
    """`[n]` 1 on marked tokens and their four neighbours within a frame (or tile), else 0."""
    parts = marks.split([grid.size for grid in grids])
    return torch.cat([_next_to(mark, grid) for mark, grid in zip(parts, grids, strict=True)])


def _next_to(mark: Tensor, grid: Grid) -> Tensor:
    image = mark.view(grid)
    near = image.clone()
    near[:, 1:] += image[:, :-1]
    near[:, :-1] += image[:, 1:]
    near[:, :, 1:] += image[:, :, :-1]
    near[:, :, :-1] += image[:, :, 1:]
    return near.clamp(max=1).flatten()


def next_in_order(tokens: Tensor, n: int, width: int) -> Tensor:
    """`[n]` 1 on these tokens and on those one place and one row of `width` before and behind in raster order, at the
    first or the last token where there is no such."""
    near = torch.cat([tokens + step for step in (0, -1, 1, -width, width)]).clamp(0, n - 1)
    return torch.zeros(n, device=tokens.device).index_fill_(0, near, 1)
