"""One forward pass of the language model under pruning: what is alive, and what each layer may see."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from foveate.core.method import Method, Stage
from foveate.core.probe import Reading, read_probe
from foveate.core.selection import Packed
from foveate.core.view import RowState, View
from foveate.engine.alive import Alive, resolve
from foveate.engine.cache import FoveatedCache, Kept, select_columns
from foveate.engine.layout import Group, Layout
from foveate.engine.masks import causal_mask
from foveate.engine.reader import LayerReader
from foveate.families.base import Family
from foveate.trace.records import PrefillTrace


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
        self.reader: LayerReader | None = None  # of the layer before
        self._masks: dict[tuple[Any, ...], Any] = {}
        self.probe = method.probe(family.info) if method is not None and self.stages else None
        layers = range(family.info.layers) if method is not None and self.stages else ()
        self.later = {k: later for k in layers if (later := method.later(layout, k)) is not None}  # type: ignore[union-attr]
        self.readings: dict[int, Reading] = {}

    @property
    def took_over(self) -> bool:
        pruned = self.alive.index is not None or (self.cache is not None and self.cache.is_pruned)
        return pruned or bool(self.later)

    # -- selecting ---------------------------------------------------------------------------------------

    def select(self, layer: int, hidden: Tensor) -> Packed | None:
        """Run the stage before `layer`, if there is one; returns how to re-pack the batch."""
        self._read_probe()
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
            if self.probe is not None and layer > max(self.probe.reads):
                self.probe = None  # it has read all it should
            packed = self.alive.drop(selections, probe=self.probe.length if self.probe and layer else 0)
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
            _readings=self.readings,
        )

    def _row_state(self, row: int, hidden: Tensor) -> RowState:
        tokens = self.alive.length - self.alive.probe
        visual = sum(len(group.alive) for group in self.layout.groups if group.row == row)
        return RowState(
            hidden=hidden[row, :tokens],
            valid=None if self.alive.valid is None else self.alive.valid[row, :tokens],
            visual=self.alive.visual(row, hidden.device)[:tokens],
            text=self.alive.counts[row] - self.alive.probe - visual,
            keys=lambda: self._keys(row).to(hidden.device),
            attention=lambda queries: self._attention(row, queries),
        )

    def _keys(self, row: int) -> Tensor:
        assert self.reader is not None, "keys exist from layer 1 on"
        return self.reader.keys(row)[:, self.reader.past :]

    def _attention(self, row: int, queries: Tensor) -> Tensor:
        reader = self.reader
        assert reader is not None, "attention exists from layer 1 on"
        valid = self._valid(reader.layer, reader.past)
        return reader.attention(row, queries, None if valid is None else valid[row])

    @torch.no_grad()
    def _read_probe(self) -> None:
        """Record the probe's attention in the layer that has just run, if the method reads it there."""
        reader = self.reader
        if self.probe is None or reader is None or reader.layer not in self.probe.reads:
            return
        if reader.layer not in self.readings:
            valid = self._valid(reader.layer, reader.past)
            self.readings[reader.layer] = read_probe(
                reader, self.probe.length, valid, self.alive.index, self.layout.rows
            )

    # -- what a layer sees -------------------------------------------------------------------------------

    def enter(self, layer: int, hidden: Tensor, embeddings: tuple[Tensor, Tensor]) -> None:
        """Note that `layer` is about to run on `hidden`."""
        del self.entered[layer:]  # a layer may run twice (gradient checkpointing)
        self.entered.append(Block(self.alive.index, self.alive.length, self.alive.valid is not None))
        following = self.stages.get(layer + 1)
        reads = following is not None and (following.queries or self.cache is None)
        reads = reads or (self.probe is not None and layer in self.probe.reads)
        held = (hidden, embeddings) if reads else None
        self.reader = LayerReader(self.family, layer, self.alive.length, self.cache, held)

    def layer_mask(self, layer: int, hidden: Tensor) -> Any:
        """The attention mask of a layer; layers that hold the same tokens share one."""
        held = None if self.cache is None else self.cache.held(layer)
        past = 0 if self.cache is None else self.cache.physical_length(layer)
        later = self.later.get(layer)
        key = (id(held), past, self.alive.drops, hidden.device, id(later))
        if key not in self._masks:
            config = self.family.parts.text.config
            now = None if later is None else self.alive.later(later, hidden.device)
            self._masks[key] = causal_mask(config, hidden, past, self._valid(layer, past), now)
        return self._masks[key]

    def _valid(self, layer: int, past: int) -> Tensor | None:
        """`[B, past + n]` which columns of a layer are real tokens, None if all are."""
        before = self._past_valid(layer) if past else None
        now = self.alive.valid
        if before is None and now is None:
            return None
        shape, device = (self.layout.rows, past), (now if before is None else before).device  # type: ignore[union-attr]
        before = torch.ones(shape, dtype=torch.bool, device=device) if before is None else before
        shape = (self.layout.rows, self.alive.length)
        now = torch.ones(shape, dtype=torch.bool, device=device) if now is None else now.to(device)
        return torch.cat([before, now], dim=1)

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
