"""The caches of layers before a stage that drops tokens from them too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveate.engine.alive import Block
from foveate.engine.cache import select_columns

if TYPE_CHECKING:
    from foveate.engine.forward import ForwardPass


class EarlierLayers:
    """Removes what is no longer alive from layers that have run; those given the same tokens share columns."""

    def __init__(self, forward: ForwardPass) -> None:
        self.forward = forward
        self._left: dict[tuple[int, ...], tuple[Tensor, Tensor | None]] = {}

    def compact(self, layer: int) -> None:
        """Leave only the tokens alive now in a layer's block of this pass."""
        forward = self.forward
        cache, alive = forward.cache, forward.alive
        assert cache is not None
        if not cache.shrinks(layer):
            return  # recurrent layers have no tokens, windows are bounded as they are
        index, length, *_ = forward.entered[layer]
        columns, valid = self._columns(index, length, cache.physical_length(layer) - length)
        select_columns(cache, layer, columns, valid)
        forward.entered[layer] = Block(alive.index, alive.length, valid is not None)

    def _columns(self, index: Tensor | None, length: int, past: int) -> tuple[Tensor, Tensor | None]:
        """`[B, m]` columns of a layer's cache that hold what is alive, and which of them are real (None: all)."""
        alive = self.forward.alive
        key, now, valid = (id(index), length, past, alive.drops), alive.index, alive.valid
        assert now is not None
        if key not in self._left:
            places = now.clamp(min=0) if index is None else torch.searchsorted(index.contiguous(), now.contiguous())
            before = torch.arange(past, device=now.device).expand(now.shape[0], -1)
            columns = torch.cat([before, past + places.clamp(max=length - 1)], dim=1)
            if valid is not None:
                valid = torch.cat([torch.ones_like(before, dtype=torch.bool), valid], dim=1)
            self._left[key] = columns, valid
        return self._left[key]
