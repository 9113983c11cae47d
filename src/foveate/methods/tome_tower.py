"""ToMe in the vision tower: the most similar tokens are merged block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foveate.core.budget import Keep
from foveate.core.selection import Choice, Selection
from foveate.core.tower import TowerStage, TowerView
from foveate.core.tower_method import TowerMethod
from foveate.core.view import ModelInfo, Tap
from foveate.errors import ConfigurationError
from foveate.maths.bipartite import merge_pairs
from foveate.maths.similarity import head_mean


@dataclass(frozen=True)
class ToMeTower(TowerMethod):
    """Bipartite soft matching inside the vision tower (arXiv 2210.09461): about the same number r of tokens is merged
    before each of several blocks.

    The tokens alive are dealt out alternately to two sets; each of the first is joined to the most similar of the
    second (cosine of keys, mean over heads), and the r best pairs become their mean, weighted by how many tokens each
    stands for. The class token takes no part. From then on attention is proportional, `softmax(q k^T / sqrt(d) + log
    s)` with the sizes s, where the tower takes a mask (CLIP, SigLIP).

    Deviations: the paper merges between attention and MLP of a block, by that block's keys; stock blocks have no seam
    there, so tokens are merged before the next block. On the Qwen line whole visual tokens are merged (their patches
    one by one), merged ones keep the position of the one that took the others in, and attention is not proportional, as
    that tower takes no mask. Unverified: no official output was compared.

    Args:
        keep: share of the tokens that is left in the end, in (0, 1], or their number per image.
        blocks: before how many blocks tokens are merged, from the second block on. None: before all whose output
            reaches the language model, as published.

    Raises:
        ConfigurationError: no blocks; or a keep so small that more than half of the tokens would be merged at once.
    """

    name = "tome_tower"
    paper = "arXiv 2210.09461"

    keep: Keep | float | int | None = 0.5
    blocks: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks is not None and self.blocks < 1:
            raise ConfigurationError(f"ToMeTower(blocks={self.blocks}) must be at least 1, or None.")

    def tower_stages(self, info: ModelInfo) -> Sequence[TowerStage]:
        feeding = info.tower_blocks if info.feeding is None else info.feeding
        last = feeding - 1 if self.blocks is None else min(self.blocks, feeding - 1)
        return [TowerStage(b, taps=(Tap("keys", b - 1),), proportional=True) for b in range(1, last + 1)]

    def check(self, info: ModelInfo) -> None:
        super().check(info)
        steps = len(self.tower_stages(info))
        lowest = 0.5**steps
        if self.budget.ratio is not None and self.budget.ratio < lowest:
            raise ConfigurationError(
                f"ToMeTower cannot keep {self.budget.ratio:.3g} by merging before {steps} blocks, each of which at "
                f"most halves the tokens; it stays above {lowest:.3g}. Raise keep or blocks."
            )

    def select_in_tower(self, view: TowerView) -> Choice:
        steps, total = len(self.tower_stages(view.info)), view.grid.size
        final = self.budget.size(total)
        # about the same number at each, but never more in the end than the rest can halve
        left = min(total - (total - final) * view.block // steps, final * 2 ** (steps - view.block))
        if (count := min(len(view) - left, len(view) // 2)) <= 0:
            return Selection.everything(len(view), view.device)
        keys = head_mean(view.tap(Tap("keys", view.block - 1)), view.info.tower_heads)
        return merge_pairs(keys, count, view.sizes)
