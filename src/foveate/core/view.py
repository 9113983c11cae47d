"""What a method may read at a seam, for one sample. Methods never see a batch, and do not know what fills a View."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from foveate.core.grid import Grid
from foveate.core.tiles import places
from foveate.errors import ConfigurationError, MissingTapError


@dataclass(frozen=True)
class Tap:
    """Something to read in the vision tower; a value per visual token that enters the language model.

    Attributes:
        kind: `"received"`: attention that a token receives (from the class token if the tower has one, else
            from all tokens of its image), summed over heads, `[N]`. `"keys"`: key features before rotary
            embedding, heads concatenated, `[N, D]`. `"hidden"`: output of a block, `[N, D]`.
        block: index of the vision block; negative counts from the end. None lets the family choose its
            best block for the purpose (last block with global attention that feeds the projector).
        queries: without a class token, attention received is averaged over so many evenly spaced patches of an image
            (or attention window) that has more; None: over all. 1,024 are all patches of a picture of 448 pixels a side
            and cost little beside the tower; what fewer queries miss in larger pictures: docs/reading.md.

    Raises:
        ConfigurationError: fewer than one query.
    """

    kind: Literal["received", "keys", "hidden"]
    block: int | None = None
    queries: int | None = 1024

    def __post_init__(self) -> None:
        if self.queries is not None and self.queries < 1:
            raise ConfigurationError(f"queries={self.queries} must be at least 1, or None for all patches.")


@dataclass(frozen=True)
class ModelInfo:
    """What a method may know of the model before it sees an input.

    Attributes:
        family: name of the family adapter.
        layers: number of decoder layers.
        tower_blocks: number of vision blocks.
        has_class_token: whether `Tap("received")` is the class token's attention.
        tower_heads: attention heads of a vision block, 0 if unknown.
        readable: decoder layers whose keys and attention can be read; None: all of them.
        windowed: those whose attention can be read, but sees only the nearest tokens.
        feeding: vision blocks, from the first on, whose output reaches the language model; None: all.
    """

    family: str = "tensors"
    layers: int = 1
    tower_blocks: int = 1
    has_class_token: bool = False
    tower_heads: int = 0
    readable: tuple[int, ...] | None = None
    windowed: tuple[int, ...] = ()
    feeding: int | None = None

    def can_read(self, layer: int) -> bool:
        """Whether keys and attention of a decoder layer can be read, about all tokens."""
        return self.readable is None or layer in self.readable

    def reading_layer(self, stage: int) -> int | None:
        """The layer that a stage before layer `stage` reads: the nearest earlier readable one, None without one."""
        earlier = range(stage - 1, -1, -1)
        whole = next((layer for layer in earlier if self.can_read(layer)), None)
        return next((layer for layer in earlier if layer in self.windowed), None) if whole is None else whole

    def reading_stages(self, stages: Sequence[int]) -> tuple[int, ...]:
        """Where stages can be that read a layer before them: those without one move to behind the first readable."""
        found: list[int] = []
        for stage in stages:
            stage = max(stage, found[-1] + 1) if found else stage
            found.append(next((k for k in range(stage, self.layers) if self.reading_layer(k) is not None), stage))
        return tuple(found)


class Source(Protocol):
    """What fills a `View`: the transformers engine, another runtime, or plain tensors (`View.of`).

    All tensors are about one image (or all images of one prompt) and on one device; `n` tokens are alive of `N`.
    Each raises `MissingTapError` for what it cannot give.
    """

    def hidden(self) -> Tensor:
        """`[n, D]` hidden states of the visual tokens entering the stage's layer."""

    def text(self) -> Tensor:
        """`[T, D]` hidden states of the prompt's text tokens, in order."""

    def keys(self) -> Tensor:
        """`[H_kv, n, d]` keys of the visual tokens in the layer before."""

    def text_keys(self) -> Tensor:
        """`[H_kv, T, d]` keys of the text tokens in the layer before."""

    def attention(self, queries: Tensor | None) -> Tensor:
        """`[H, Q, n]` attention of text tokens (indices into `text`; None: the last) in the layer before."""

    def probe(self, layer: int, log_probabilities: bool) -> Tensor:
        """`[H, P, n]` attention of the method's probe at a layer."""

    def tap(self, tap: Tap) -> Tensor:
        """`[N, ...]` a reading of the vision tower, for all tokens of the image."""


@dataclass(frozen=True)
class View:
    """Tokens of one image (or of all images of one prompt) as they stand before one stage.

    `n` is the number of tokens still alive, `N` the number the image had in the unpruned prompt.

    Attributes:
        info: facts about the model.
        layer: stage layer; 0 is before the language model.
        index: `[n]` which of the image's `N` tokens are alive, increasing.
        grids: merged grids (frames, rows, columns) of the image(s) this view covers.
        total: `N`.
        entered: tokens given to the method at its first stage, which its budget refers to; `N` for the first method.
        source: where readings come from.
        image, frame: index of the (first) image within the row; of the frame, where a method is shown one at a time.
        row: row of the batch: only for methods that were given something for each sample.
        images: of every image its grids and its tiles side by side (None: unknown); empty: every grid is an image.
        memo: survives from one stage of a forward pass to the next; for what a method computed earlier.
    """

    info: ModelInfo
    layer: int
    index: Tensor
    grids: tuple[Grid, ...]
    total: int
    entered: int
    source: Source = field(repr=False)
    image: int = 0
    frame: int = 0
    row: int = 0
    images: tuple[tuple[int, int | None], ...] = ()
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        hidden: Tensor | None = None,
        *,
        grid: Grid | tuple[int, int, int] | None = None,
        text: Tensor | None = None,
        keys: Tensor | None = None,
        text_keys: Tensor | None = None,
        attention: Tensor | None = None,
        taps: Mapping[Tap, Tensor] | None = None,
        index: Tensor | None = None,
        info: ModelInfo | None = None,
        layer: int = 0,
        image: int = 0,
        memo: dict[Any, Any] | None = None,
    ) -> View:
        """A view from plain tensors: to try a method, to test one, or to run it inside another runtime.

        Args:
            hidden: `[n, D]` visual tokens as they enter the layer (before the language model: projected features).
            grid: (frames, rows, columns); by default one row of all tokens.
            text: `[T, D]` text tokens.
            keys, text_keys: `[H_kv, n | T, d]` of the layer before.
            attention: `[H, T, n]` of the text tokens over the visual ones in the layer before.
            taps: readings of the vision tower, `[N, ...]` each.
            index: `[n]` which of the `N` tokens are alive; by default all.
            info: facts about the model, as far as the method asks.

        What is not given raises `MissingTapError` when a method reads it.
        """
        given = [t for t in (hidden, None if keys is None else keys[0]) if t is not None]
        whole = list((taps or {}).values())
        if not (sizes := ([len(index)] if index is not None else []) + [len(t) for t in given + whole]):
            raise MissingTapError("View.of needs at least one tensor about the visual tokens (hidden, keys or a tap).")
        grid = Grid(*grid) if grid is not None else Grid(1, 1, len(whole[0]) if whole else sizes[0])
        alive = torch.arange(grid.size, device=(given + whole)[0].device) if index is None else index
        source = TensorSource(hidden, text, keys, text_keys, attention, dict(taps or {}))
        memo = {} if memo is None else memo  # an empty one is the caller's all the same
        return cls(info or ModelInfo(), layer, alive, (grid,), grid.size, grid.size, source, image=image, memo=memo)

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
    def hidden(self) -> Tensor:
        """`[n, D]` hidden states entering the layer (at layer 0: the projected visual features)."""
        return self.source.hidden()

    @property
    def text(self) -> Tensor:
        """`[T, D]` hidden states of the prompt's text tokens, in order, without padding."""
        return self.source.text()

    @property
    def keys(self) -> Tensor:
        """`[H_kv, n, d]` keys of the previous layer after rotary embedding, KV heads not repeated."""
        return self.source.keys()

    @property
    def text_keys(self) -> Tensor:
        """`[H_kv, T, d]` keys of the previous layer for the prompt's text tokens."""
        return self.source.text_keys()

    def attention(self, queries: Tensor | None = None) -> Tensor:
        """Attention of a few text tokens over this view's tokens in the previous layer.

        Args:
            queries: `[Q]` indices into `text`; by default the prompt's last token.

        Returns:
            `[H, Q, n]` float32; each row is part of a softmax over the whole causal, unpadded sequence.
        """
        return self.source.attention(queries)

    def probe(self, layer: int, log_probabilities: bool = False) -> Tensor:
        """Attention of the method's probe over this view's tokens at a layer in `Probe.reads`.

        Args:
            log_probabilities: log-softmax over every real key (padding excluded) instead of scaled logits.

        Returns:
            `[H, P, n]` float32.
        """
        return self.source.probe(layer, log_probabilities)

    def tap(self, tap: Tap) -> Tensor:
        """Value of a declared vision-tower tap for the tokens alive, `[n, ...]`."""
        return self.source.tap(tap).to(self.device)[self.index]

    def parts(self) -> Tensor:
        """`[n]` which of `grids` each token is in."""
        ends = torch.tensor([grid.size for grid in self.grids], device=self.device).cumsum(0)
        return torch.bucketize(self.index, ends, right=True)

    def positions(self) -> Tensor:
        """`[n, 3]` (frame, row, column) of every token within its own grid, int64; a tile is a grid of its own."""
        return torch.cat([grid.coordinates(self.device) for grid in self.grids])[self.index]

    def places(self) -> tuple[Tensor, int]:
        """`[n, 3]` float32 places in the whole picture, and its longer side (see `core.tiles.places`)."""
        found, longest = places(self.grids, self.images, self.device)
        return found[self.index], longest


@dataclass(frozen=True)
class TensorSource:
    """Readings that are plain tensors; see `View.of`."""

    given_hidden: Tensor | None
    given_text: Tensor | None
    given_keys: Tensor | None
    given_text_keys: Tensor | None
    given_attention: Tensor | None
    taps: Mapping[Tap, Tensor]

    def hidden(self) -> Tensor:
        return _given(self.given_hidden, "hidden states of the visual tokens", "hidden")

    def text(self) -> Tensor:
        return _given(self.given_text, "the text tokens", "text")

    def keys(self) -> Tensor:
        return _given(self.given_keys, "keys of the previous layer", "keys")

    def text_keys(self) -> Tensor:
        return _given(self.given_text_keys, "keys of the text tokens", "text_keys")

    def attention(self, queries: Tensor | None) -> Tensor:
        rows = _given(self.given_attention, "attention of the previous layer", "attention")
        return rows[:, -1:] if queries is None else rows[:, queries]

    def probe(self, layer: int, log_probabilities: bool) -> Tensor:
        raise MissingTapError("A view of plain tensors has no probe; run the method on a model.")

    def tap(self, tap: Tap) -> Tensor:
        return _given(self.taps.get(tap), f"{tap}", "taps")


def _given(tensor: Tensor | None, what: str, argument: str) -> Tensor:
    if tensor is None:
        raise MissingTapError(f"This method reads {what}, which View.of was not given (argument {argument!r}).")
    return tensor
