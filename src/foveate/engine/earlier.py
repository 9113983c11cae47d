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
        self._biases: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def compact(self, layer: int) -> None:
        """Leave only the tokens alive now in a layer's block of this pass."""
        forward = self.forward
        cache, alive = forward.cache, forward.alive
        assert cache is not None
        if not cache.shrinks(layer):
            return  # recurrent layers have no tokens, windows are bounded as they are
        index, length, _, bias = forward.entered[layer]
        past = cache.physical_length(layer) - length
        columns, valid = self._columns(index, length, past)
        select_columns(cache, layer, columns, valid)
        left = None if bias is None else self._bias(bias, columns, past)
        forward.entered[layer] = Block(alive.index, alive.length, valid is not None, left)

    def _bias(self, bias: Tensor, columns: Tensor, past: int) -> Tensor:
        """`[B, m]` of a layer's own weights those of what is left."""
        key = (id(bias), id(columns))
        if key not in self._biases:  # the given one is kept too, so that its id stays its own
            left, valid = bias.gather(1, columns[:, past:] - past), self.forward.alive.valid
            self._biases[key] = bias, left if valid is None else left.masked_fill(~valid, 0)
        return self._biases[key][1]

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
