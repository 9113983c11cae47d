"""DART: keep the tokens that duplicate a few pivots least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.budget import Keep
from foveate.core.method import BEFORE_LLM, Method, Stage
from foveate.core.selection import Choice
from foveate.core.view import ModelInfo, View
from foveate.errors import ConfigurationError
from foveate.maths.schedule import scaled_layers
from foveate.maths.similarity import unit


@dataclass(frozen=True)
class DART(Method):
    """Pivots are the visual and the text tokens with the largest keys (L1 norm over all heads). Visual pivots are kept;
    then every pivot in turn adds an equal share of the tokens left, those whose hidden states are least similar to it
    (arXiv 2502.11494).

    The order in which pivots take their turn decides some of the tokens. It is visual pivots first, in reading order;
    the published code iterates over a Python set of places in the sequence, whose order depends on where the image
    stands; `published` does the same. The published number of tokens does not count the visual pivots, ours does.

    Deviations: text pivots come from all text of the prompt (with `published` from that behind the image); hidden
    states are compared as they are (published: after the model's final norm).

    Args:
        keep: average visual tokens per decoder layer, as a ratio, count or `Keep`.
        layer: where to prune. None: 2 of 32 (published), scaled to the depth. 0 prunes before the language model,
            where projected features and text embeddings stand in for the keys.
        visual_pivots, text_pivots: how many (published: 4 and 4).
        published: pivots in the published code's order. Copies their places to the host.
        image_place: with `published`, place of the image's first token in the sequence (35 in LLaVA-1.5's prompt).
    """

    paper = "arXiv 2502.11494"
    verified = "official code: kept sets identical with published=True"

    keep: Keep | float | int | None = 1 / 3
    layer: int | None = None
    visual_pivots: int = 4
    text_pivots: int = 4
    published: bool = False
    image_place: int = 35

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.visual_pivots < 1 or self.text_pivots < 0:
            raise ConfigurationError("DART: visual_pivots must be at least 1, text_pivots at least 0.")

    def stages(self, info: ModelInfo) -> Sequence[Stage]:
        layer = self.layer
        if layer is None:
            (layer,) = info.reading_stages(scaled_layers((2,), 32, info.layers, "DART"))
        return (Stage(layer, reads="nothing" if layer == BEFORE_LLM else "keys"),)

    def choose(self, view: View, count: int) -> Choice:
        text = view.text
        before = view.layer == BEFORE_LLM
        visual_size = view.hidden if before else view.keys.transpose(0, 1).flatten(1)
        text_size = text if before else view.text_keys.transpose(0, 1).flatten(1)
        if self.published:  # what stands in front of the image is no pivot
            text, text_size = text[self.image_place :], text_size[self.image_place :]
        own = largest(visual_size, min(self.visual_pivots, count))
        others = largest(text_size, min(self.text_pivots, len(text)))
        if self.published:
            pivots = torch.cat([view.hidden[own], text[others]])
            pivots = pivots[set_order([*own.tolist(), *(others + view.total).tolist()], self.image_place)]
        else:
            pivots = torch.cat([view.hidden[own.sort().values], text[others.sort().values]])
        return least_similar(unit(view.hidden), unit(pivots), own, count).sort().values


def largest(x: Tensor, count: int) -> Tensor:
    """`[count]` rows of `x` `[n, d]` with the largest L1 norm, largest first."""
    return x.float().abs().sum(1).argsort(descending=True, stable=True)[:count]


def set_order(tokens: list[int], offset: int) -> list[int]:
    """Which token comes when in a Python set of `offset + token` for each, filled in the given order."""
    places = [offset + token for token in tokens]
    return [places.index(place) for place in set(places)]


def least_similar(x: Tensor, pivots: Tensor, start: Tensor, count: int) -> Tensor:
    """Add to `start` until `count` tokens are chosen, each pivot in turn an equal share (the first ones one more).

    Args:
        x: `[n, d]` unit rows.
        pivots: `[p, d]` unit rows.
        start: `[s]` indices chosen already.

    Returns:
        `[count]` indices in order of choice.
    """
    similarity = x @ pivots.T
    chosen = [start]
    missing = count - len(start)
    for number in range(len(pivots)):
        share = missing // len(pivots) + (number < missing % len(pivots))
        taken = similarity[:, number].index_fill(0, torch.cat(chosen), float("inf"))
        chosen.append(taken.argsort(stable=True)[:share])
    return torch.cat(chosen)
