"""SparseVLM: text tokens that look at the image rate it; dropped tokens are recycled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.budget import Keep, part, top
from foveate.core.method import BEFORE_LLM, Method, Stage
from foveate.core.selection import Choice, Selection
from foveate.core.view import ModelInfo, View
from foveate.errors import ConfigurationError
from foveate.maths.density import dpc_knn
from foveate.maths.schedule import scaled_layers, solve
from foveate.maths.similarity import complement, merge_into

PUBLISHED = {1 / 3: (300, 200, 110), 2 / 9: (303, 110, 36), 1 / 9: (66, 30, 17)}
"""Tokens of 576 after each stage, by average keep ratio, for the stages before layers 2, 6 and 15 of 32."""


@dataclass(frozen=True)
class SparseVLM(Method):
    """Text tokens whose embeddings match the image better than average are raters. At three stages the visual tokens
    with the highest attention from the raters in the previous layer stay; the best of the dropped ones are clustered
    (DPC-KNN) and each cluster becomes one token, its mean (arXiv 2410.04417).

    Deviations: `keep` counts recycled tokens too, which stand at their cluster's centre (published: they come in
    addition; which are ranked and which recycled follows from the number ranked as published). The published numbers
    per stage are scaled by one factor, so that the average is `keep` at any depth. Raters come from all text tokens of
    the prompt; those in front of an image cannot see it and add nothing. The published code adds noise of 1e-6 to the
    density of the clustering, ours does not.

    Args:
        keep: average visual tokens per decoder layer, as a ratio, count or `Keep`; the nearest published schedule (1/3,
            2/9, 1/9) gives the proportions of the stages.
        rank_scale: None: that schedule. A number: the paper's adaptive rule instead, each stage deletes `rank_scale *
            (n - rank)` of its n tokens, rank being that of the raters' attention; `keep` is ignored unless 1.0.
        recycled: share of the dropped tokens that is recycled (published: 0.3).
        cluster_size: recycled tokens per cluster (published: 10).
    """

    paper = "arXiv 2410.04417"
    verified = "official code: raters, kept and recycled sets identical, values of the clusters"
    adaptive = True

    keep: Keep | float | int | None = 1 / 3
    rank_scale: float | None = None
    recycled: float = 0.3
    cluster_size: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank_scale is not None and not 0 < self.rank_scale <= 1:
            raise ConfigurationError(f"SparseVLM(rank_scale={self.rank_scale}) must lie in (0, 1].")
        if not 0 <= self.recycled <= 1 or self.cluster_size < 1:
            raise ConfigurationError("SparseVLM: recycled must lie in [0, 1] and cluster_size be at least 1.")

    def stages(self, info: ModelInfo) -> Sequence[Stage]:
        layers = info.reading_stages(scaled_layers((2, 6, 15), 32, info.layers, "SparseVLM"))
        # before the model only the raters are found
        return [Stage(BEFORE_LLM), *(Stage(layer, reads="attention") for layer in layers)]

    def shares(self, info: ModelInfo, keep: float) -> Sequence[float]:
        layers = [stage.layer for stage in self.stages(info)][1:]
        profile = PUBLISHED[min(PUBLISHED, key=lambda ratio: abs(ratio - keep))]

        def shape(strength: float) -> list[float]:
            factor = strength * 576 / profile[-1]
            return [min(1.0, factor * p / 576) for p in profile]

        return 1.0, *solve(layers, shape, keep, info.layers, "SparseVLM")

    def select(self, view: View) -> Choice:
        """The number of tokens depends on the attention where `rank_scale` is given."""
        if view.layer == BEFORE_LLM:
            view.memo["raters"] = raters(view.hidden, view.text)
            return Selection.everything(len(view), view.device)
        if self.rank_scale is None:
            return super().select(view)
        rows = self._rows(view)
        count = adaptive_count(rows, self.rank_scale)
        return Selection.everything(len(view), view.device) if count >= len(view) else self._recycle(view, rows, count)

    def choose(self, view: View, count: int) -> Choice:
        return self._recycle(view, self._rows(view), count)

    def _rows(self, view: View) -> Tensor:
        """`[raters, n]` attention, mean over heads."""
        return view.attention(view.memo["raters"].to(view.device)).mean(0)

    def _recycle(self, view: View, rows: Tensor, count: int) -> Choice:
        """`count` tokens: the best-rated ones, and clusters of the best of the others."""
        n, ranked = len(view), count
        while ranked > 1 and ranked + self.clusters(n - ranked) > count:
            ranked -= 1
        return self.recycle(view, rows.mean(0), ranked, min(count - ranked, self.clusters(n - ranked)))

    def clusters(self, dropped: int) -> int:
        """Clusters that so many dropped tokens are recycled to."""
        pool = self.pool(dropped)
        return min(pool, pool // self.cluster_size + 1)

    def pool(self, dropped: int) -> int:
        """How many of the dropped tokens are recycled."""
        return min(dropped, part(self.recycled, dropped) + 1) if self.recycled else 0

    def recycle(self, view: View, score: Tensor, ranked: int, clusters: int) -> Choice:
        """The `ranked` best by `score` `[n]`, and that many clusters of the best of the others."""
        n = len(view)
        kept = top(score, ranked)
        if clusters == 0:
            return kept
        dropped = complement(n, kept)
        pool = dropped[top(score[dropped], self.pool(len(dropped)))]
        centres, owner = dpc_knn(view.hidden[pool], clusters, clusters)
        survivors = torch.cat([kept, pool[centres]]).sort().values
        return merge_into(n, survivors, pool[centres], pool[complement(len(pool), centres)], owner)


def raters(visual: Tensor, text: Tensor) -> Tensor:
    """Indices of the text tokens `[T, D]` that the visual tokens `[n, D]` match better than average: softmax of the
    inner products over the text, mean over visual tokens. All of them if all match equally. Synchronises once."""
    match = (visual.float() @ text.float().T).softmax(1).mean(0)
    chosen = (match > match.mean()).nonzero().squeeze(1)
    return chosen if len(chosen) else torch.arange(len(match), device=match.device)


def adaptive_count(rows: Tensor, scale: float) -> int:
    """Tokens that stay of `n`, given the raters' attention `[R, n]`: all but `scale * (n - rank)`, at least one.
    Synchronises once."""
    n = rows.shape[1]
    rank = int(torch.linalg.matrix_rank(rows.float()))
    return max(1, n - part(scale, n - rank))
