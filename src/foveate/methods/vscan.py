"""VScan: global and local scans of the vision tower with merging, then text-guided pruning in the middle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.budget import Keep, part, top
from foveate.core.method import BEFORE_LLM, Method, Stage
from foveate.core.selection import Choice, Selection
from foveate.core.view import ModelInfo, Tap, View
from foveate.errors import ConfigurationError
from foveate.maths.schedule import solve
from foveate.maths.similarity import complement, merge_into, nearest, rank_within, unit


@dataclass(frozen=True)
class VScan(Method):
    """1. Before the language model keep, half and half, the tokens most attended within each window in a shallow block
    (local scan) and, of the others, those most attended in the deep block (global scan); every other token is merged
    into the most similar kept one (mean). 2. Before the middle layer keep a third of them, by attention of the prompt's
    last token (arXiv 2505.22654).

    Every window gives the same number of tokens, rounded down as in the published code; what that leaves over goes to
    the global scan, so a budget of less than two tokens a window is all global.

    Deviation: without a class token, attention received from all tokens (in a block of windowed attention: from those
    of the same attention window).

    Where the tower cannot be read, projected features and their max-min diversity stand in for it
    (`Method.takes_features`); the trace says so.

    Args:
        keep: average visual tokens per decoder layer, as a ratio, count or `Keep`. Published: 1.5 times it after stage
            1 and half of it after stage 2 (96 and 32 tokens for an average of 64).
        layer: stage 2. None: half of the depth (published: 16 of 32 for LLaVA-1.5, 14 of 28 for Qwen2.5-VL).
        late: share of stage 1's tokens that stage 2 keeps (published: 1/3).
        local: share of stage 1's tokens that the local scan chooses (published: 0.5).
        windows: the local scan divides each side of a frame into this many (published: windows of 6 x 6 of 24 x 24).
        shallow_block: block of the local scan. None: the sixth of 24, scaled to the depth.
        queries: without a class token, how many patches the attention received is averaged over (see `Tap`); None: all.
    """

    paper = "arXiv 2505.22654"
    verified = "official code: kept sets and merged values of stage 1 identical"
    takes_prompt = False

    layer: int | None = None
    late: float = 1 / 3
    local: float = 0.5
    windows: int = 4
    shallow_block: int | None = None
    queries: int | None = Tap.queries

    def __post_init__(self) -> None:
        super().__post_init__()
        Keep(ratio=self.late)
        if not 0 <= self.local <= 1 or self.windows < 1 or self.layer == 0:
            raise ConfigurationError("VScan: local must lie in [0, 1], windows and layer be at least 1.")

    def stages(self, info: ModelInfo) -> Sequence[Stage]:
        layer = max(1, info.layers // 2) if self.layer is None else self.layer
        if layer >= info.layers:
            raise ConfigurationError(f"VScan(layer={layer}) needs a model of more than {layer} layers.")
        return Stage(BEFORE_LLM), Stage(layer, reads="attention")

    def shares(self, info: ModelInfo, keep: float) -> Sequence[float]:
        def shape(strength: float) -> tuple[float, float]:
            first = min(1.0, strength * 2)  # the first half lowers stage 1 at a fixed share of stage 2 ...
            late = self.late + (1 - self.late) * max(0.0, strength * 2 - 1)  # ... the second raises stage 2's
            return first, first * late

        return solve([stage.layer for stage in self.stages(info)], shape, keep, info.layers, "VScan")

    @property
    def takes_features(self) -> bool:
        return True

    def taps(self, info: ModelInfo) -> Sequence[Tap]:
        return self._shallow(info), Tap("received", queries=self.queries)

    def _shallow(self, info: ModelInfo) -> Tap:
        block = max(1, round(6 / 24 * info.tower_blocks)) - 1
        return Tap("received", block if self.shallow_block is None else self.shallow_block, self.queries)

    def choose(self, view: View, count: int) -> Choice:
        if view.layer == BEFORE_LLM:
            return self._scan(view, count)
        return top(view.attention().mean(0)[0], count)

    def _windows(self, view: View) -> tuple[Tensor, int]:
        """`[n]` window of every token, and their number; every grid of an image in tiles is divided alike."""
        frame, row, col = view.positions().unbind(1)
        table, windows = [], 0
        for t, h, w in view.grids:
            down, across = min(self.windows, h), min(self.windows, w)
            table.append((h, w, down, across, windows))
            windows += t * down * across
        height, width, rows, cols, first = torch.tensor(table, device=view.device)[view.parts()].unbind(1)
        return first + (frame * rows + row * rows // height) * cols + col * cols // width, windows

    def _scan(self, view: View, count: int) -> Selection:
        n = len(view)
        window, windows = self._windows(view)
        each = part(self.local, count) // windows
        local = rank_within(view.tap(self._shallow(view.info)), window, windows) < each
        chosen = top(view.tap(Tap("received", queries=self.queries)).masked_fill(local, float("inf")), count)
        dropped = complement(n, chosen)
        features = unit(view.hidden)
        _, owner = nearest(features[dropped], features[chosen])
        return merge_into(n, chosen, chosen, dropped, owner)
