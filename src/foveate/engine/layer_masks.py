"""The attention mask of every decoder layer once layers hold different tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveate.engine.kept import Kept
from foveate.engine.masks import causal_mask, continued_mask, gathered_mask, hide_columns
from foveate.engine.proportional import biased, joined_bias

if TYPE_CHECKING:
    from foveate.engine.forward import ForwardPass


class LayerMasks:
    """Masks for the tokens alive in one forward pass; layers that hold the same tokens share one."""

    def __init__(self, forward: ForwardPass) -> None:
        self.forward = forward
        self._made: dict[tuple[Any, ...], Any] = {}

    def of(self, layer: int, hidden: Tensor, given: Any) -> Any:
        """The mask of a layer.

        Args:
            hidden: `[B, n, D]`, read for shape, dtype and device only.
            given: what stock code made for the unpruned sequence.
        """
        forward = self.forward
        cache, facts = forward.cache, forward.family.layers[layer]
        if facts.kind == "linear":
            return self._padding(given, hidden)
        held = None if cache is None else cache.held(facts.source)
        past = forward.past_columns(layer)
        later = forward.later.get(layer)
        own = cache.held(layer) if cache is not None and facts.source != layer else None
        key = (id(held), id(own), past, forward.alive.drops, facts.source != layer, hidden.device, id(later), id(given))
        if key not in self._made:
            if facts.source == layer:
                made = self._mask(layer, hidden, given, held, past)
            else:
                made = self._shared(layer, facts.source, hidden, given)
            bias = self._bias(layer, held, past, hidden.device)
            self._made[key] = made if bias is None else biased(made, bias, hidden)
        return self._made[key]

    def _bias(self, layer: int, held: Kept | None, past: int, device: torch.device) -> Tensor | None:
        """`[B, k]` what is added to the logits of what a layer's attention reads, None if that is nothing."""
        forward = self.forward
        source, rows, block = forward.family.layers[layer].source, forward.layout.rows, forward.entered[layer]
        if source != layer:
            return self._shared_bias(layer, source, device)
        before = None if held is None else held.full_bias(forward.layout.past)
        return joined_bias(before, block.bias, (rows, past), (rows, block.length), device)

    def _shared_bias(self, layer: int, source: int, device: torch.device) -> Tensor | None:
        """The same for a layer that reads the keys of an earlier one: its own tokens say what they stand for."""
        forward = self.forward
        own = None if forward.cache is None else forward.cache.held(layer)
        block, past = forward.entered[layer], forward.layout.past
        parts = [] if own is None or own.bias is None else [(own.index, own.bias, 0)]
        if block.columns is not None and block.bias is not None:
            parts.append((block.columns, block.bias, past))
        if not parts:
            return None
        columns = self._shared_columns(layer, source, device)
        every = torch.zeros(columns.shape[0], past + forward.layout.length + 1, device=device)
        for index, bias, start in parts:
            index = index.to(device)
            every.scatter_(1, torch.where(index >= 0, index + start, every.shape[1] - 1), bias.to(device))
        return every.gather(1, columns.clamp(min=0))

    def _padding(self, given: Any, hidden: Tensor) -> Any:
        """Layers without keys read the 2-D mask of real tokens, if any is padding."""
        alive = self.forward.alive
        if alive.index is None:
            return given
        if alive.valid is None:
            return None
        return alive.valid.to(hidden.device, torch.long)

    def _mask(self, layer: int, hidden: Tensor, given: Any, held: Kept | None, past: int) -> Any:
        forward = self.forward
        later = forward.later.get(layer)
        if isinstance(given, Tensor) and later is None:
            windowed = forward.family.layers[layer].kind in ("sliding", "chunked")
            if forward.alive.index is not None or (held is not None and windowed):
                rows, columns = self._rows(hidden.device), self._columns(held, past, hidden.device)
                return gathered_mask(given, rows, columns, forward.layout.past, forward.layout.length)
            if held is None:  # a window that nothing was dropped from holds the end of the conversation
                return given[..., -(past + hidden.shape[1]) :] if windowed else given
            return continued_mask(self._tail(given, held), held, forward.mask)
        if given is None and held is not None and later is None and self._decodes_with_sdpa(hidden):
            return continued_mask(self._tail(None, held), held, forward.mask) if held.padded else None
        config = forward.family.parts.text.config
        now = None if later is None else forward.alive.later(later, hidden.device)
        return causal_mask(config, hidden, past, forward.valid(layer, past), now)

    def _shared(self, layer: int, source: int, hidden: Tensor, given: Any) -> Any:
        """The mask of a layer that reads the keys of an earlier one, of which some were dropped in between."""
        forward, device = self.forward, hidden.device
        past = forward.layout.past
        columns = self._shared_columns(layer, source, device)
        own = None if forward.cache is None else forward.cache.held(layer)
        gone = self._gone(columns, own)
        rows = self._rows(device)
        if isinstance(given, Tensor):
            made = gathered_mask(given, rows, columns, past, forward.layout.length)
            return hide_columns(made, gone)
        allowed = columns[:, None] <= (rows + past)[:, :, None]
        valid = (columns >= 0) & ~gone
        if forward.mask is not None:
            valid = valid & forward.mask.to(device, torch.bool).gather(1, columns.clamp(min=0))
        return self._as_backend((allowed & valid[:, None])[:, None], hidden)

    def _shared_columns(self, layer: int, source: int, device: torch.device) -> Tensor:
        """`[B, k]` logical index of the keys that a layer reads of an earlier one, -1 on padding."""
        forward, layout = self.forward, self.forward.layout
        block, _ = forward.lent[source]
        now = torch.arange(layout.length, device=device).expand(layout.rows, -1)
        now = now if block.columns is None else block.columns.to(device)
        columns = torch.where(now >= 0, now + layout.past, -1)
        if not layout.past:
            return columns
        held = None if forward.cache is None else forward.cache.held(source)
        return torch.cat([self._before(held, forward.past_columns(layer), device, layout.rows), columns], 1)

    def _gone(self, columns: Tensor, own: Kept | None) -> Tensor:
        """`[B, k]` which of the columns a layer's own tokens do not hold any more."""
        forward = self.forward
        past, alive = forward.layout.past, forward.alive
        here = torch.ones(columns.shape[0], past + forward.layout.length + 1, dtype=torch.bool, device=columns.device)
        for index, start, until in (
            (None if own is None else own.index, 0, 0 if own is None else own.until),
            (alive.index, past, past + forward.layout.length),
        ):
            if index is not None:
                here[:, start:until] = False
                index = index.to(columns.device)
                here.scatter_(1, torch.where(index >= 0, index + start, here.shape[1] - 1), True)
        return ~here.gather(1, columns.clamp(min=0))

    def _as_backend(self, allowed: Tensor, hidden: Tensor) -> Tensor:
        config: Any = self.forward.family.parts.text.config
        if config._attn_implementation == "eager":
            bias = torch.zeros(allowed.shape, dtype=hidden.dtype, device=hidden.device)
            return bias.masked_fill(~allowed, torch.finfo(hidden.dtype).min)
        return allowed

    def _decodes_with_sdpa(self, hidden: Tensor) -> bool:
        forward = self.forward
        config: Any = forward.family.parts.text.config
        implementation = config._attn_implementation
        return (
            hidden.shape[1] == 1 and forward.alive.index is None and implementation == "sdpa" and forward.mask is None
        )

    def _tail(self, given: Tensor | None, held: Kept) -> Tensor:
        """The part of a continued pass's mask that is about what came after the pruned prompt."""
        key = ("tail", id(given), held.until)
        layout = self.forward.layout
        if key not in self._made:
            if given is None:
                shape = (layout.rows, 1, 1, layout.past + layout.length - held.until)
                self._made[key] = torch.ones(shape, dtype=torch.bool, device=held.index.device)
            else:
                self._made[key] = given[..., held.until :]
        found: Tensor = self._made[key]
        return found

    def _rows(self, device: torch.device) -> Tensor:
        """`[B, n]` columns of the unpruned rows of this pass that are alive, -1 on padding."""
        forward = self.forward
        index = forward.alive.index
        if index is None:
            return torch.arange(forward.layout.length, device=device).expand(forward.layout.rows, -1)
        return index.to(device)

    def _columns(self, held: Kept | None, physical: int, device: torch.device) -> Tensor:
        """`[B, physical + n]` logical index of everything that a layer's attention reads, -1 on padding."""
        rows, past = self._rows(device), self.forward.layout.past
        now = torch.where(rows >= 0, rows + past, -1)
        if not past:
            return now
        return torch.cat([self._before(held, physical, device, now.shape[0]), now], dim=1)

    def _before(self, held: Kept | None, physical: int, device: torch.device, rows: int) -> Tensor:
        past = self.forward.layout.past
        if held is not None:
            return held.full(past).to(device)
        return torch.arange(past - physical, past, device=device).expand(rows, -1)
