"""A budget for every frame of a video: a method is shown one frame at a time, as if each were an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from foveate.core.grid import Grid
from foveate.core.selection import Choice, Merge, Selection, resolve
from foveate.core.view import Source, Tap, View


def by_frame(select: Callable[[View], Choice], view: View, who: str) -> Selection:
    """What `select` chooses in every frame of a view (an image is one frame), as one selection.

    A frame is a step in time: Qwen merges two pictures into one, and all tiles of a picture are one frame. What a
    method leaves for its later stages (`View.memo`) is kept frame by frame.

    Args:
        who: name of the method, for errors.

    Raises:
        ConfigurationError: a choice that does not fit the tokens of its frame.
    """
    frames = list(split(view))
    choices = resolve([select(frame) for frame, _ in frames], [len(frame) for frame, _ in frames], who)
    return join(len(view), choices, [places for _, places in frames])


def frame_sizes(grids: Sequence[Grid]) -> list[int]:
    """Tokens of every frame of an image or video."""
    return [sum(g.h * g.w for g in grids if g.t > number) for number in range(max(g.t for g in grids))]


def split(view: View) -> Iterator[tuple[View, Tensor]]:
    """Every frame of which something is alive, as a view of its own, and `[n]` places of its tokens in the whole one.
    One synchronisation."""
    time = torch.cat([grid.coordinates(view.device)[:, 0] for grid in view.grids])
    alive = time[view.index]
    sizes = torch.bincount(alive, minlength=len(frame_sizes(view.grids))).tolist()
    entered = view.memo.setdefault("tokens that entered, by frame", sizes)
    read: dict[str, Tensor] = {}
    for number, places in enumerate(alive.argsort(stable=True).split(sizes)):
        if not len(places):
            continue
        own = (time == number).nonzero().squeeze(1)
        grids = tuple(grid._replace(t=1) for grid in view.grids if grid.t > number)
        frame = replace(
            view,
            index=torch.searchsorted(own, view.index[places]),
            grids=grids,
            images=view.images if len(grids) == len(view.grids) else ((len(grids), None),),
            total=len(own),
            entered=entered[number],
            source=FrameSource(view.source, places, own, read),
            frame=number,
            memo=view.memo.setdefault(f"frame {number}", {}),
        )
        yield frame, places


def join(n: int, choices: Sequence[Selection], places: Sequence[Tensor]) -> Selection:
    """Selections among the tokens at `places` of `n`, as one."""
    kept = torch.cat([own[choice.index] for choice, own in zip(choices, places, strict=True)])
    index, order = kept.sort()
    rank = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
    targets, segments, sources, weights = [], [], [], []
    before = groups = 0
    for choice, own in zip(choices, places, strict=True):
        if choice.merge is not None:
            targets.append(rank[before + choice.merge.target])
            segments.append(groups + choice.merge.segment)
            sources.append(own[choice.merge.source])
            weights.append(choice.merge.weight)
            groups += len(choice.merge.target)
        before += len(choice)
    if not targets:
        return Selection(n, index)
    return Selection(n, index, Merge(*(torch.cat(parts) for parts in (targets, segments, sources, weights))))


@dataclass(frozen=True)
class FrameSource:
    """Readings about the tokens of one frame; a `core.view.Source`.

    Attributes:
        whole: readings about all frames.
        places: `[n]` the frame's living tokens among those of all frames.
        own: `[N]` all its tokens among those of all frames.
        read: what was read of `whole` for other frames.
    """

    whole: Source
    places: Tensor
    own: Tensor
    read: dict[str, Tensor] = field(repr=False)

    def _once(self, name: str, read: Callable[[], Tensor]) -> Tensor:
        if name not in self.read:
            self.read[name] = read()
        return self.read[name]

    def hidden(self) -> Tensor:
        return self._once("hidden", self.whole.hidden)[self.places]

    def text(self) -> Tensor:
        return self._once("text", self.whole.text)

    def keys(self) -> Tensor:
        return self._once("keys", self.whole.keys)[:, self.places]

    def text_keys(self) -> Tensor:
        return self._once("text keys", self.whole.text_keys)

    def attention(self, queries: Tensor | None) -> Tensor:
        if queries is not None:  # chosen by what is in the frame
            return self.whole.attention(queries)[..., self.places]
        return self._once("attention", lambda: self.whole.attention(None))[..., self.places]

    def probe(self, layer: int, log_probabilities: bool) -> Tensor:
        name = f"probe {layer} {log_probabilities}"
        return self._once(name, lambda: self.whole.probe(layer, log_probabilities))[..., self.places]

    def tap(self, tap: Tap) -> Tensor:
        found = self.whole.tap(tap)
        return found[self.own.to(found.device)]
