"""FastVID: segments of like frames, in each what is attended to and what is dense."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from foveate.core.budget import Keep, part
from foveate.core.grid import frame_numbers
from foveate.core.method import Method
from foveate.core.selection import Choice, Merge, Selection
from foveate.core.view import ModelInfo, Tap, View
from foveate.errors import ConfigurationError
from foveate.maths.shares import spread
from foveate.maths.similarity import unit


@dataclass(frozen=True)
class FastVID(Method):
    """Dynamic density pruning (arXiv 2503.11187).

    A video is cut into segments where neighbouring frames are least alike (`segments - 1` cuts), and wherever their
    likeness is below `alike`. Every frame keeps the tokens that receive most attention in the vision tower; a share
    `dense` of the budget goes to every `step`-th frame of a segment instead, counted from its last, to the tokens that
    are dense (near their four nearest) and far from denser ones. These take in the other tokens of their segment, each
    the nearest ones by cosine: with `m` members a token becomes `b` times itself and `1 - b` times their mean, `b` the
    larger of `1 / (m + 1)` and `own`.

    Frames are compared by the mean of their projected features (the paper: by a feature of the whole frame that its
    towers give), and attention is what `Tap("received")` reads. An image is one frame, a segment by itself. Where a
    tower cannot be read, the order in which max-min diversity chooses projected features stands in for the attention
    (`Method.takes_features`); the trace says so.

    Args:
        keep: share of the tokens that remain, in (0, 1], or their number per video.
        segments, alike: least number of segments, and the cosine below which frames are cut.
        dense, step, own: as above; all published (c = 8, tau = 0.9, d = 0.4, p = 4, alpha = 0.6).
        queries: without a class token, how many patches the attention received is averaged over (see `Tap`); None: all.
    """

    name = "fastvid"
    paper = "arXiv 2503.11187"
    takes_prompt = False
    takes_frames = False

    segments: int = 8
    alike: float = 0.9
    dense: float = 0.4
    step: int = 4
    own: float = 0.6
    queries: int | None = Tap.queries

    def __post_init__(self) -> None:
        super().__post_init__()
        Keep(ratio=self.dense)
        if self.segments < 1 or self.step < 1 or not 0 <= self.own <= 1:
            raise ConfigurationError("FastVID: segments and step must be at least 1, own a share from 0 to 1.")

    def taps(self, info: ModelInfo) -> Sequence[Tap]:
        return (self._received,)

    @property
    def takes_features(self) -> bool:
        return True

    @property
    def _received(self) -> Tap:
        return Tap("received", queries=self.queries)

    def choose(self, view: View, count: int) -> Choice:
        frame = frame_numbers(view.grids, view.index).unique(return_inverse=True)[1]
        hidden, received = view.hidden.float(), view.tap(self._received)
        tokens = [(frame == number).nonzero().squeeze(1) for number in range(int(frame.amax()) + 1)]
        numbers = spread(count, [len(own) for own in tokens])
        salient, rest = [], []
        for own, number in zip(tokens, numbers, strict=True):
            order = own[received[own].argsort(descending=True, stable=True)]
            few = number - part(self.dense, number)
            salient.append(order[:few])
            rest.append(order[few:].sort().values)
        chosen, merges = list(salient), []
        for members in self._segments(torch.stack([hidden[own].mean(0) for own in tokens])):
            left = sum(numbers[f] - len(salient[f]) for f in members)
            for anchors in self._anchors(hidden, [rest[f] for f in members], left):
                merges += list(self._taken_in(hidden, anchors, torch.cat([rest[f] for f in members])))
                chosen.append(anchors)
        return merged(len(view), torch.cat(chosen).sort().values, merges)

    def _segments(self, frames: Tensor) -> Iterator[list[int]]:
        """Numbers of the frames in each segment; `frames` is `[f, d]`."""
        likeness = (unit(frames[:-1]) * unit(frames[1:])).sum(-1)
        few = likeness.argsort(stable=True)[: self.segments - 1].tolist()
        cuts = sorted({*few, *(likeness < self.alike).nonzero().squeeze(1).tolist()})
        bounds = [0, *(cut + 1 for cut in cuts), len(frames)]
        for first, end in pairwise(bounds):
            yield list(range(first, end))

    def _anchors(self, hidden: Tensor, rest: Sequence[Tensor], count: int) -> Iterator[Tensor]:
        """Dense tokens of every `step`-th frame of a segment, `count` in all."""
        frames = [own for place, own in enumerate(reversed(rest)) if place % self.step == 0][::-1]
        for own, number in zip(frames, spread(count, [len(own) for own in frames]), strict=True):
            if number:
                yield own[density(hidden[own]).argsort(descending=True, stable=True)[:number]]

    def _taken_in(self, hidden: Tensor, anchors: Tensor, members: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each anchor itself, what it is a mixture of, and the weights."""
        owner = (unit(hidden[members]) @ unit(hidden[anchors]).T).argmax(1)
        for number, anchor in enumerate(anchors):
            own = members[owner == number]
            keep = max(1 / (len(own) + 1), self.own)
            weight = torch.full((len(own) + 1,), (1 - keep) / max(len(own), 1), device=hidden.device)
            weight[0] = keep if len(own) else 1.0
            yield anchor.view(1), torch.cat([anchor.view(1), own]), weight


def density(x: Tensor, neighbours: int = 4) -> Tensor:
    """`[n]` how dense and how far from denser ones each of `[n, d]` is (density peaks; FastVID, section 3.3)."""
    distance = torch.cdist(x, x) / x.shape[1] ** 0.5
    dense = (-distance.topk(min(neighbours, len(x)), largest=False).values.square().mean(-1)).exp()
    denser = dense[None] > dense[:, None]
    score: Tensor = torch.where(denser, distance, distance.amax()).amin(-1) * dense
    return score


def merged(n: int, kept: Tensor, merges: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Selection:
    """The selection with some of its tokens mixed: (token, sources, weights) each."""
    if not merges:
        return Selection(n, kept)
    target, sources, weights = zip(*merges, strict=True)
    sizes = torch.tensor([len(source) for source in sources], device=kept.device)
    segment = torch.repeat_interleave(torch.arange(len(sizes), device=kept.device), sizes)
    places = torch.searchsorted(kept, torch.cat(target))
    return Selection(n, kept, Merge(places, segment, torch.cat(sources), torch.cat(weights)))
