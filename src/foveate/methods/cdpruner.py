"""CDPruner: diverse tokens, conditioned on the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.method import Choice, Method
from foveate.core.view import ModelInfo, Tap, View
from foveate.maths.diversity import greedy_map
from foveate.maths.similarity import unit


@dataclass(frozen=True)
class CDPruner(Method):
    """Greedy MAP of a determinantal point process over vision features, weighted by relevance to the text
    (arXiv 2506.10967).

    The kernel is `r_i cos(x_i, x_j) r_j`, with relevance r scaled to (0, 1] over the image.

    Deviation: on LLaVA-1.5 the paper takes relevance from CLIP's text tower, which a stock LLaVA does not have. Here,
    on every family, relevance is the mean cosine between a projected token and the embeddings of the prompt's text
    tokens (chat template included). The published code takes CLIP's cosine with a minus sign; here the sign stays.
    Unverified: no official output or published number was compared.

    Args:
        keep: share of the tokens that remain, in (0, 1], or their number per image (published: 64 of 576).
        block: vision block whose output is compared. None: the one that feeds the projector (published).
    """

    paper = "arXiv 2506.10967"

    block: int | None = None

    def taps(self, info: ModelInfo) -> Sequence[Tap]:
        return (Tap("hidden", self.block),)

    def choose(self, view: View, count: int) -> Choice:
        features = view.tap(Tap("hidden", self.block))
        return greedy_map(features, relevance(view.hidden, view.text), count).sort().values


def relevance(visual: Tensor, text: Tensor) -> Tensor:
    """`[n]` in (0, 1]: mean cosine of `[n, D]` with `[T, D]`, min-max scaled; ones without text."""
    if text.shape[0] == 0:
        return torch.ones(visual.shape[0], device=visual.device)
    mean = unit(visual) @ unit(text).mean(0)
    low, high = mean.aminmax()
    return (mean - low + 1e-6) / (high - low + 1e-6)
