"""What fills a `View` while a transformers model reads a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from foveate.core.view import Tap
from foveate.engine.layout import Group
from foveate.engine.reading import Reading
from foveate.engine.standins import stand_in
from foveate.errors import MissingTapError


@dataclass(frozen=True)
class RowState:
    """The current sequence of one row at a seam; tensors stay on the layer's device.

    Attributes:
        hidden: `[n, D]` tokens about to enter the layer, padding included, a probe not.
        valid: `[n]` bool or None when nothing is padding.
        visual: returns `[n]` bool, True on visual tokens (of every image of the row).
        texts: number of text tokens.
        keys: returns keys of the previous layer, `[H_kv, n, d]`.
        attention: `(query places [Q] or None) -> [H, Q, n]`, probabilities of the previous layer over this block.
    """

    hidden: Tensor
    valid: Tensor | None
    visual: Callable[[], Tensor]
    texts: int
    keys: Callable[[], Tensor]
    attention: Callable[[Tensor | None], Tensor]

    @cached_property
    def text_places(self) -> Tensor:
        """`[T]` places of the row's text tokens, without padding."""
        visual = self.visual()
        text = ~visual if self.valid is None else ~visual & self.valid
        # their number is known, so a stable sort finds them without a synchronisation
        return text.to(torch.int8).argsort(descending=True, stable=True)[: self.texts]


@dataclass(frozen=True)
class GroupSource:
    """Readings about one group of visual tokens; a `core.view.Source`.

    Attributes:
        standing: returns `[n]`, where its living tokens stand in the row.
        readings: of the probe, by layer.
        stand_ins: whether features stand in for what the tower cannot give.
    """

    group: Group
    standing: Callable[[], Tensor]
    row: RowState
    readings: Mapping[int, Reading] = field(default_factory=dict)
    stand_ins: bool = False

    @cached_property
    def place(self) -> Tensor:
        """`[n]` where its living tokens stand in the row."""
        return self.standing()

    def hidden(self) -> Tensor:
        return self.row.hidden[self.place]

    def text(self) -> Tensor:
        return self.row.hidden[self.row.text_places]

    def keys(self) -> Tensor:
        return self.row.keys()[:, self.place]

    def text_keys(self) -> Tensor:
        return self.row.keys()[:, self.row.text_places]

    def attention(self, queries: Tensor | None) -> Tensor:
        places = None if queries is None else self.row.text_places[queries]
        return self.row.attention(places)[..., self.place]

    def probe(self, layer: int, log_probabilities: bool) -> Tensor:
        if layer not in self.readings:
            raise MissingTapError(f"No probe was read in layer {layer}; name the layer in `Probe.reads`.")
        columns = self.group.columns[self.group.alive]
        device = self.row.hidden.device
        return self.readings[layer].at(self.group.row, columns.to(device), log_probabilities).to(device)

    def tap(self, tap: Tap) -> Tensor:
        if self.stand_ins:
            tap = Tap(tap.kind)  # whatever the block
            if tap not in self.group.taps:
                self.group.taps[tap] = stand_in(tap, self.hidden(), self.group.alive, self.group.total)
        if tap not in self.group.taps:
            raise MissingTapError(f"{tap} was not read; a method must name it in `taps`.")
        return self.group.taps[tap]
