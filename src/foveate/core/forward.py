"""One forward pass of the language model under pruning: what is alive, and what each layer may see."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from foveate.core.alive import Alive, resolve
from foveate.core.attention import attention_rows, project_heads
from foveate.core.cache import FoveatedCache, Kept, select_columns
from foveate.core.family import Family
from foveate.core.layout import Group, Layout
from foveate.core.masks import causal_mask
from foveate.core.method import Method, Stage
from foveate.core.selection import Packed
from foveate.core.trace import PrefillTrace
from foveate.core.view import RowState, View


class Block(NamedTuple):
    """The tokens that one layer was given: columns of the unpruned rows (None = all), number, any padding."""

    columns: Tensor | None
    length: int
    padded: bool


class ForwardPass:
    """State of one call of the text model.

    It *takes over* masks and positions of the decoder layers as soon as anything was dropped, in this pass
    or in the cache it continues; before that, the stock model runs untouched, bit for bit.

    Args:
        family: adapter of the model.
        layout: the unpruned batch (without groups while decoding).
        mask: `[B, past + n]` bool attention mask on the device, or None if every token is real.
        cache: None without `use_cache`.
        trace: where to record a prefill; None while decoding.
    """

    def __init__(
        self,
        family: Family,
        method: Method | None,
        layout: Layout,
        mask: Tensor | None,
        cache: FoveatedCache | None,
        trace: PrefillTrace | None,
        device: torch.device,
    ) -> None:
        self.family, self.method, self.layout, self.cache, self.trace = family, method, layout, cache, trace
        self.mask = mask
        self.alive = Alive.start(layout, device)
        stages = method.stages(family.info) if method is not None and layout.groups else ()
        self.stages = {stage.layer: stage for stage in stages}
        self.position_embeddings: tuple[Tensor, Tensor] | None = None
        self.entered: list[Block] = []  # what each layer was given in this pass
        self.previous: tuple[Tensor, tuple[Tensor, Tensor]] | None = None  # input of the layer before
        self._masks: dict[tuple[Any, ...], Any] = {}

    @property
    def took_over(self) -> bool:
        return self.alive.index is not None or (self.cache is not None and self.cache.is_pruned)

    # -- selecting ---------------------------------------------------------------------------------------

    def select(self, layer: int, hidden: Tensor) -> Packed | None:
        """Run the stage before `layer`, if there is one; returns how to re-pack the batch."""
        stage = self.stages.get(layer)
        if stage is None or self.method is None or self.trace is None:
            return None
        self.alive.to(hidden.device)
        groups = self.layout.groups
        with self.trace.selecting.span(hidden.device), torch.no_grad():
            rows = {row: self._row_state(row, hidden) for row in {group.row for group in groups}}
            choices = [self.method.select(stage, self._view(stage, group, rows)) for group in groups]
            selections = resolve(choices, [len(g.alive) for g in groups], self.method.name)
            self.trace.record(layer, groups, selections)
            packed = self.alive.drop(selections)
        if packed is not None and stage.compact_earlier and self.cache is not None:
            for earlier in range(layer):
                self._compact(earlier)
        return packed

    def _view(self, stage: Stage, group: Group, rows: dict[int, RowState]) -> View:
        return View(
            info=self.family.info,
            layer=stage.layer,
            index=group.alive,
            grids=group.grids,
            image=group.image,
            memo=group.memo,
            _group=group,
            _place=self.alive.places(group),
            _row=rows[group.row],
        )

    def _row_state(self, row: int, hidden: Tensor) -> RowState:
        valid = None if self.alive.valid is None else self.alive.valid[row]
        return RowState(
            hidden=hidden[row],
            valid=valid,
            visual=self.alive.visual(row, hidden.device),
            keys=lambda: self._keys(row).to(hidden.device),
            attention=lambda queries: self._attention(row, queries, valid),
        )

    def _keys(self, row: int) -> Tensor:
        """Keys of the previous layer for this pass's tokens: from its cache, else computed again."""
        layer = len(self.entered) - 1
        assert layer >= 0, "keys exist from layer 1 on"
        if self.cache is not None:
            return self.cache.layers[layer].keys[row, :, -self.alive.length :]
        return self._project("k", row, slice(None))

    def _project(self, which: str, row: int, tokens: Tensor | slice) -> Tensor:
        assert self.previous is not None, "declare Stage(queries=True) to read attention"
        hidden, (cos, sin) = self.previous
        lone = 0 if cos.shape[0] == 1 else row
        layer = self.family.parts.layers[len(self.entered) - 1]
        return project_heads(layer, hidden[row][tokens], which, cos[lone][tokens], sin[lone][tokens])

    def _attention(self, row: int, queries: Tensor, valid: Tensor | None) -> Tensor:
        """`[H, Q, n]` over this pass's tokens; the softmax also runs over what the cache held before."""
        layer: Any = self.family.parts.layers[len(self.entered) - 1]
        q = self._project("q", row, queries)
        now = self.alive.length
        if self.cache is None:
            keys, past = self._project("k", row, slice(None)), 0
        else:
            keys = self.cache.layers[len(self.entered) - 1].keys[row]
            past = keys.shape[1] - now
        allowed = torch.arange(now, device=q.device)[None] <= queries.to(q.device)[:, None]
        if valid is not None:
            allowed = allowed & valid.to(q.device)[None]
        before = torch.ones(len(queries), past, dtype=torch.bool, device=q.device)
        if past and (held := self._past_valid(len(self.entered) - 1)) is not None:
            before &= held[row].to(q.device)[None]
        scale = layer.self_attn.scaling
        return attention_rows(q, keys.to(q.device), scale, torch.cat([before, allowed], dim=1))[..., past:]

    # -- what a layer sees -------------------------------------------------------------------------------

    def enter(self, layer: int, hidden: Tensor, embeddings: tuple[Tensor, Tensor]) -> None:
        """Note that `layer` is about to run on `hidden`."""
        del self.entered[layer:]  # a layer may run twice (gradient checkpointing)
        self.entered.append(Block(self.alive.index, self.alive.length, self.alive.valid is not None))
        wanted = self.stages.get(layer + 1)
        reads = wanted is not None and (wanted.queries or self.cache is None)
        self.previous = (hidden, embeddings) if reads else None

    def layer_mask(self, layer: int, hidden: Tensor) -> Any:
        """The attention mask of a layer; layers that hold the same tokens share one."""
        held = None if self.cache is None else self.cache.held(layer)
        past = 0 if self.cache is None else self.cache.physical_length(layer)
        key = (id(held), past, self.alive.drops, hidden.device)
        if key not in self._masks:
            self._masks[key] = causal_mask(
                self.family.parts.text.config, hidden, past, self._valid(layer, past, hidden.device)
            )
        return self._masks[key]

    def _valid(self, layer: int, past: int, device: torch.device) -> Tensor | None:
        """`[B, past + n]` which columns of a layer are real tokens, None if all are."""
        before = self._past_valid(layer) if past else None
        now = self.alive.valid
        if before is None and now is None:
            return None
        rows = self.layout.rows
        before = torch.ones(rows, past, dtype=torch.bool, device=device) if before is None else before
        now = torch.ones(rows, self.alive.length, dtype=torch.bool, device=device) if now is None else now
        return torch.cat([before.to(device), now.to(device)], dim=1)

    def _past_valid(self, layer: int) -> Tensor | None:
        past = self.layout.past
        held = None if self.cache is None else self.cache.held(layer)
        logical = None if self.mask is None else self.mask[:, :past]
        if held is None:
            return logical
        if logical is None:
            return held.full(past) >= 0 if held.padded else None
        index = held.full(past).to(logical.device)
        return (index >= 0) & logical.gather(1, index.clamp(min=0))

    # -- bookkeeping -------------------------------------------------------------------------------------

    def _compact(self, layer: int) -> None:
        """Remove from an earlier layer's block the tokens that are no longer alive."""
        assert self.cache is not None
        index, length, _ = self.entered[layer]
        now = self.alive.index
        assert now is not None
        past = self.cache.physical_length(layer) - length
        places = now.clamp(min=0) if index is None else torch.searchsorted(index.contiguous(), now.contiguous())
        before = torch.arange(past, device=now.device).expand(now.shape[0], -1)
        columns = torch.cat([before, past + places.clamp(max=length - 1)], dim=1)
        valid = self.alive.valid
        if valid is not None:
            valid = torch.cat([torch.ones_like(before, dtype=torch.bool), valid], dim=1)
        select_columns(self.cache, layer, columns, valid)
        self.entered[layer] = Block(now, self.alive.length, valid is not None)

    def finish(self) -> None:
        """After the last layer: tell the cache what its layers hold."""
        if self.cache is None or not any(block.columns is not None for block in self.entered):
            return
        past, until = self.layout.past, self.layout.past + self.layout.length
        made: dict[tuple[int, int], Kept] = {}
        kept: list[Kept | None] = []
        for layer, block in enumerate(self.entered):
            old = self.cache.held(layer)
            if block.columns is None and old is None:
                kept.append(None)
                continue
            key = (id(old), id(block.columns))
            if key not in made:
                made[key] = self._held_now(old, block, past, until)
            kept.append(made[key])
        self.cache.kept = kept
        self.cache.decode_from_cache |= bool(self.method and self.method.decode_from_cache)

    def _held_now(self, old: Kept | None, block: Block, past: int, until: int) -> Kept:
        rows = self.layout.rows
        index = torch.arange(self.layout.length).expand(rows, -1) if block.columns is None else block.columns
        new = torch.where(index >= 0, index + past, -1)
        before = torch.arange(past).expand(rows, -1) if old is None else old.full(past)
        padded = block.padded or bool(old and old.padded)
        return Kept(torch.cat([before.to(new.device), new], dim=1), until, padded)
