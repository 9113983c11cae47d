"""What a method may read at a seam, for one sample. Methods never see a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foveate.core.grid import Grid
from foveate.core.method import ModelInfo, Tap
from foveate.core.probe import Reading
from foveate.engine.layout import Group


@dataclass(frozen=True)
class RowState:
    """The current sequence of one row at a seam; tensors stay on the layer's device.

    Attributes:
        hidden: `[n, D]` tokens about to enter the layer, padding included.
        valid: `[n]` bool or None when nothing is padding.
        visual: `[n]` bool, True on visual tokens (of every image of the row).
        text: number of text tokens.
        keys: returns keys after rotary embedding of the previous layer, `[H_kv, n, d]`.
        attention: `(query positions [Q]) -> [H, Q, n]`, probabilities of the previous layer over this block.
    """

    hidden: Tensor
    valid: Tensor | None
    visual: Tensor
    text: int
    keys: Callable[[], Tensor]
    attention: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class View:
    """Tokens of one image (or of all images of one prompt) as they stand before one stage.

    `n` is the number of tokens still alive, `N` the number the image had in the unpruned prompt.

    Attributes:
        info: facts about the model.
        layer: stage layer; 0 is before the language model.
        index: `[n]` which of the image's `N` tokens are alive, increasing.
        grids: merged grids (frames, rows, columns) of the image(s) this view covers.
        image: index of the (first) image within the row.
        memo: survives from one stage of a forward pass to the next; for what a method computed earlier.
    """

    info: ModelInfo
    layer: int
    index: Tensor
    grids: tuple[Grid, ...]
    image: int
    memo: dict[str, Any]
    _group: Group = field(repr=False)
    _place: Tensor = field(repr=False)
    _row: RowState = field(repr=False)
    _readings: dict[int, Reading] = field(repr=False, default_factory=dict)

    def __len__(self) -> int:
        return self.index.shape[0]

    @property
    def device(self) -> torch.device:
        return self.index.device

    @property
    def grid(self) -> Grid:
        """The grid of the only (or first) image."""
        return self.grids[0]

    @property
    def row(self) -> int:
        """Row of the batch: only for methods that were given something for each sample."""
        return self._group.row

    @property
    def total(self) -> int:
        """`N`: number of tokens in the unpruned prompt."""
        return self._group.total

    @property
    def hidden(self) -> Tensor:
        """`[n, D]` hidden states entering the layer (at layer 0: the projected visual features)."""
        return self._row.hidden[self._place]

    @property
    def text_places(self) -> Tensor:
        """`[T]` places of the row's text tokens in the current sequence, without padding; queries for `attention`."""
        text = ~self._row.visual if self._row.valid is None else ~self._row.visual & self._row.valid
        # their number is known, so a stable sort finds them without a synchronisation
        return text.to(torch.int8).argsort(descending=True, stable=True)[: self._row.text]

    @property
    def text(self) -> Tensor:
        """`[T, D]` hidden states of the row's text tokens, in order, without padding."""
        return self._row.hidden[self.text_places]

    @property
    def text_keys(self) -> Tensor:
        """`[H_kv, T, d]` keys of the previous layer for the row's text tokens."""
        return self._row.keys()[:, self.text_places]

    @property
    def keys(self) -> Tensor:
        """`[H_kv, n, d]` keys of the previous layer after rotary embedding, KV heads not repeated."""
        return self._row.keys()[:, self._place]

    def attention(self, queries: Tensor | None = None) -> Tensor:
        """Attention of a few query tokens over this view's tokens in the previous layer.

        Args:
            queries: `[Q]` places in the current sequence; default is its last token.

        Returns:
            `[H, Q, n]` float32; each row is part of a softmax over the whole causal, unpadded sequence.
        """
        if queries is None:
            queries = torch.tensor([self._row.hidden.shape[0] - 1], device=self.device)
        return self._row.attention(queries)[..., self._place]

    def probe(self, layer: int, log_probabilities: bool = False) -> Tensor:
        """Attention of the method's probe over this view's tokens at a layer in `Probe.reads`.

        Args:
            log_probabilities: log-softmax over every real key (padding excluded) instead of scaled logits.

        Returns:
            `[H, P, n]` float32.
        """
        columns = self._group.columns[self.index].to(self.device)
        return self._readings[layer].at(self._group.row, columns, log_probabilities).to(self.device)

    def tap(self, tap: Tap) -> Tensor:
        """Value of a declared vision-tower tap for the tokens alive, `[n, ...]`."""
        return self._group.taps[tap].to(self.device)[self.index]

    def positions(self) -> Tensor:
        """`[n, 3]` (frame, row, column) of every token within its own image, int64."""
        return torch.cat([grid.coordinates(self.device) for grid in self.grids])[self.index]
