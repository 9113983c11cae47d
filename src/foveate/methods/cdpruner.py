"""CDPruner: diverse tokens, conditioned on the question."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.method import Method
from foveate.core.selection import Choice
from foveate.core.view import View
from foveate.maths.diversity import greedy_map
from foveate.maths.similarity import unit


@dataclass(frozen=True)
class CDPruner(Method):
    """Greedy MAP of a determinantal point process over projected features, weighted by relevance to the text
    (arXiv 2506.10967).

    The kernel is `r_i cos(x_i, x_j) r_j`, with relevance r scaled to (0, 1] over the image.

    Deviation: on LLaVA-1.5 the paper takes relevance from CLIP's two towers, which a stock LLaVA does not have. Here,
    on every family, relevance is the mean cosine between a projected token and the embeddings of the prompt's text
    tokens (chat template included). The sign matters more than anything else: with CLIP's embeddings the published
    code takes *minus* the cosine (patches about the text have the smaller one), which chooses other tokens altogether
    than plus does. Between projected features and text embeddings the sign stays.

    Args:
        keep: share of the tokens that remain, in (0, 1], or their number per image (published: 64 of 576).
        published: relevance from minus the mean cosine, as in the published code.
    """

    paper = "arXiv 2506.10967"
    verified = "official code: kernel, relevance of given embeddings and greedy MAP, kept sets identical"

    published: bool = False

    def choose(self, view: View, count: int) -> Choice:
        weight = relevance(view.hidden, view.text, -1.0 if self.published else 1.0)
        return greedy_map(view.hidden, weight, count).sort().values


def relevance(visual: Tensor, text: Tensor, sign: float = 1.0) -> Tensor:
    """`[n]` in (0, 1]: `sign` times the mean cosine of `[n, D]` with `[T, D]`, min-max scaled; ones without text."""
    if text.shape[0] == 0:
        return torch.ones(visual.shape[0], device=visual.device)
    mean = sign * (unit(visual) @ unit(text).mean(0))
    low, high = mean.aminmax()
    return (mean - low + 1e-6) / (high - low + 1e-6)
