"""Seam 0: the vision tower itself is pruned. Where a method selects there, and what it may read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foveate.core.grid import Grid
from foveate.core.view import ModelInfo, Tap

IN_TOWER = -1
"""Layer under which a trace notes what the tower left: before every decoder layer."""


@dataclass(frozen=True)
class TowerStage:
    """One point in the vision tower at which a method selects whole visual tokens, with all their patches.

    Attributes:
        block: tower block before which the tokens are dropped (0-based: blocks block, block + 1, ... and the projector
            see the survivors only). 0 is before the tower: nothing but pixels and patch embeddings can be read.
        pixels: whether `TowerView.pixels` is read. At block 0 tokens are then chosen before patches are embedded, and
            `hidden` is not there.
        taps: readings of earlier blocks, for `TowerView.tap`.
        proportional: from here on the logits of a merged token are larger by the log of how many it stands for (ToMe's
            proportional attention), where the tower takes a mask; packed towers (the Qwen line) take none.
    """

    block: int
    pixels: bool = False
    taps: tuple[Tap, ...] = ()
    proportional: bool = False


@dataclass(frozen=True)
class TowerView:
    """Visual tokens of one image (or clip) as they stand before a block of the tower.

    `n` tokens are alive of `N`; each is one or `U` patches wide.

    Attributes:
        info: facts about the model.
        block: the stage's block.
        index: `[n]` which of the `N` are alive, increasing, in raster order.
        grid: of the visual tokens.
        given_hidden: `[n, U, D]` patches entering the block.
        sizes: `[n]` float32, how many tokens each stands for.
        given_pixels: `[N, U, K, A]` as the processor normalised them: `A` pixels of a patch in each of `K` planes
            (channels times frames); None if the stage does not read them.
        read: gives `[n, ...]` of a tap.
        image: index of the image within the call of the tower.
        memo: survives from one tower stage to the next.
    """

    info: ModelInfo
    block: int
    index: Tensor
    grid: Grid
    given_hidden: Tensor | None
    sizes: Tensor
    given_pixels: Tensor | None = field(default=None, repr=False)
    read: Callable[[Tap], Tensor] | None = field(default=None, repr=False)
    image: int = 0
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return self.index.shape[0]

    @property
    def device(self) -> torch.device:
        return self.index.device

    @property
    def hidden(self) -> Tensor:
        """`[n, U, D]` patches entering the block."""
        assert self.given_hidden is not None, "a stage at block 0 reads pixels or patch embeddings, not both"
        return self.given_hidden

    @property
    def pixels(self) -> Tensor:
        """`[n, U, K, A]` normalised pixels of the tokens alive."""
        assert self.given_pixels is not None, "declare TowerStage(pixels=True) to read pixels"
        return self.given_pixels[self.index]

    def tap(self, tap: Tap) -> Tensor:
        """`[n, ...]` a declared reading of an earlier block."""
        assert self.read is not None, "declare TowerStage(taps=...) to read earlier blocks"
        return self.read(tap).to(self.device)
