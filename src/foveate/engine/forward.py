"""One forward pass of the language model under pruning: what is alive, and what each layer may see."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.core.method import BEFORE_LLM, Method, Stage
from foveate.core.selection import Packed, resolve
from foveate.core.view import View
from foveate.engine.align import aligned
from foveate.engine.alive import Alive, Block, before_method, held_now, with_tower
from foveate.engine.cache import FoveatedCache
from foveate.engine.capture import AttentionCall
from foveate.engine.deepstack import Deepstack
from foveate.engine.earlier import EarlierLayers
from foveate.engine.kept import Kept
from foveate.engine.layer_masks import LayerMasks
from foveate.engine.layout import Group, Layout
from foveate.engine.masks import Later
from foveate.engine.proportional import standing_for, weigh, weighs
from foveate.engine.reading import HeardLayer, Reading, read_probe, text_attention
from foveate.engine.replay import Replay
from foveate.engine.standins import needs_stand_ins
from foveate.engine.view import GroupSource, RowState
from foveate.families.base import Family
from foveate.trace.records import PrefillTrace


class ForwardPass:
    """State of one call of the text model.

    It *takes over* masks and aligned arguments of the decoder layers as soon as anything was dropped, in this pass
    or in the cache it continues; before that, the stock model runs untouched, bit for bit.

    Args:
        family: adapter of the model.
        layout: the unpruned batch (without groups while decoding).
        mask: `[B, past + n]` bool attention mask on the device, or None if every token is real.
        cache: None without `use_cache`; only referred to weakly, so that an interrupted pass keeps none alive.
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
        self.family, self.method, self.layout, self.trace = family, method, layout, trace
        self._cache = None if cache is None else weakref.ref(cache)
        self.mask = mask
        self.alive = Alive.start(layout, device)
        stages = method.stages(family.info) if method is not None and layout.groups else ()
        self.stages = {stage.layer: stage for stage in stages}
        self.columns: list[Tensor | None] = []  # of the unpruned rows, that each layer was given
        self.entered: list[Block] = []  # what each layer was given in this pass
        self.lent: dict[int, tuple[Block, int]] = {}  # of layers that lend their keys; their past columns
        self.rotary: Any = None  # rotary embeddings of renumbered survivors
        self.probe = method.probe(family.info) if method is not None and self.stages else None
        self.later: dict[int, Later] = {}
        if isinstance(method, Replay) and self.stages:
            found = {k: method.later(layout, k) for k in range(family.info.layers)}
            self.later = {k: later for k, later in found.items() if later is not None}
        self.readings: dict[int, Reading] = {}
        self.deepstack: Deepstack | None = None
        self._reads = {k: family.info.reading_layer(k) for k, stage in self.stages.items() if stage.reads != "nothing"}
        self._heard: HeardLayer | None = None
        self._masks = LayerMasks(self)
        self._earlier = EarlierLayers(self)
        self._aligned: dict[tuple[int, int], tuple[Any, Any]] = {}

    @property
    def cache(self) -> FoveatedCache | None:
        return None if self._cache is None else self._cache()

    @property
    def took_over(self) -> bool:
        if self.alive.index is not None or self.later:
            return True
        cache = self.cache
        return cache is not None and cache.is_pruned

    def append(self, tokens: int) -> None:
        """Probe tokens follow the last column of every row."""
        layout, alive = self.layout, self.alive
        layout.length += tokens
        layout.visual = F.pad(layout.visual, (0, tokens))
        if layout.valid is not None:
            layout.valid = F.pad(layout.valid, (0, tokens), value=True)
        if alive.valid is not None:
            alive.valid = F.pad(alive.valid, (0, tokens), value=True)
        if self.mask is not None:
            self.mask = F.pad(self.mask, (0, tokens), value=True)
        alive.counts = [count + tokens for count in alive.counts]
        alive.probe = alive.appended = tokens

    # -- selecting ---------------------------------------------------------------------------------------

    def hear(self, layer: int, call: AttentionCall) -> None:
        """The attention of `layer`, which runs now; kept only if somebody reads it before the next layer."""
        probe = self.probe
        if probe is not None and layer in probe.reads and layer not in self.readings:
            valid = self.valid(layer, call.k.shape[2] - call.q.shape[2])
            with torch.no_grad():
                self.readings[layer] = read_probe(call, probe.length, valid, self.alive.index)
        if layer in self._reads.values():
            self._heard = HeardLayer(call, self.alive.index, self.alive.drops)

    def select(self, layer: int, hidden: Tensor) -> Packed | None:
        """Run the stage before `layer`, if there is one; returns how to re-pack the batch."""
        stage = self.stages.get(layer)
        if stage is None or self.method is None or self.trace is None:
            return None
        self.alive.to(hidden.device)
        groups = self.layout.groups
        with self.trace.selecting.span(hidden.device), torch.no_grad():
            rows = {row: self._row_state(row, layer, hidden) for row in {group.row for group in groups}}
            left = before_method(groups, self.trace) if layer == BEFORE_LLM else None
            views = [self._view(stage, group, rows) for group in groups]
            choices = [self.method.select_all(view) for view in views]
            selections = resolve(choices, [len(g.alive) for g in groups], self.method.name)
            if weighs(self.family, self.method):
                selections = [standing_for(view, s) for view, s in zip(views, selections, strict=True)]
            survivors = [g.alive[s.index] for g, s in zip(groups, selections, strict=True)]
            self.trace.record(layer, [g.alive for g in groups], survivors, selections)
            weigh(groups, selections, survivors)
            if left is not None:
                selections = with_tower(groups, left, selections)
            if self.probe is not None and layer > max(self.probe.reads):
                self.probe = None  # it has read all it should
            packed = self.alive.drop(selections, survivors, self.alive.probe if self.probe else 0)
        if self._reads.get(layer) not in [self._reads[later] for later in self._reads if later > layer]:
            self._heard = None
        if packed is not None and stage.compact_earlier and self.cache is not None:
            for earlier in range(layer):
                self._earlier.compact(earlier)
        return packed

    def _view(self, stage: Stage, group: Group, rows: dict[int, RowState]) -> View:
        return View(
            info=self.family.info,
            layer=stage.layer,
            index=group.alive,
            grids=group.grids,
            images=tuple(zip(group.images, group.across, strict=True)),
            total=group.total,
            entered=len(group.visible),
            source=GroupSource(
                group,
                partial(self.alive.places, group, group.alive),
                rows[group.row],
                self.readings,
                needs_stand_ins(self.family, self.method),
            ),
            image=group.image,
            row=group.row,
            memo=group.memo,
        )

    def _row_state(self, row: int, layer: int, hidden: Tensor) -> RowState:
        tokens = self.alive.length - self.alive.probe
        visual = sum(group.standing for group in self.layout.groups if group.row == row)
        return RowState(
            hidden=hidden[row, :tokens],
            valid=None if self.alive.valid is None else self.alive.valid[row, :tokens],
            visual=lambda: self.alive.visual(row, hidden.device)[:tokens],
            texts=self.alive.counts[row] - self.alive.probe - visual,
            keys=lambda: self._keys(row)[:, :tokens].to(hidden.device),
            attention=lambda places: self._attention(row, self._reads[layer] or 0, tokens, places).to(hidden.device),
        )

    def _keys(self, row: int) -> Tensor:
        heard = self._heard
        assert heard is not None, "declare Stage(reads='keys') to read keys"
        call = heard.call
        keys = call.k[row][:, call.k.shape[2] - call.q.shape[2] :]
        places = heard.places(self.alive, row)
        return keys if places is None else keys[:, places]

    def _attention(self, row: int, layer: int, tokens: int, places: Tensor | None) -> Tensor:
        heard = self._heard
        assert heard is not None, "declare Stage(reads='attention') to read attention"
        call, then = heard.call, heard.places(self.alive, row)
        valid = None if call.mask is not None else self._valid_then(layer, heard)
        if places is None:
            places = torch.tensor([tokens - 1], device=call.q.device)
        queries = places if then is None else then[places]
        rows = text_attention(call, row, queries, None if valid is None else valid[row])
        return rows[..., :tokens] if then is None else rows[..., then][..., :tokens]

    def _valid_then(self, layer: int, heard: HeardLayer) -> Tensor | None:
        """Real tokens among what a layer read when it was heard."""
        past = heard.call.k.shape[2] - heard.call.q.shape[2]
        if heard.drops == self.alive.drops:
            return self.valid(layer, past)
        now = None if heard.index is None else heard.index >= 0
        if heard.index is None and self.mask is not None:
            now = self.mask[:, self.layout.past :].bool()
        return self._joined(self._past_valid(layer), now, past)

    # -- what a layer sees -------------------------------------------------------------------------------

    def enter(self, layer: int) -> None:
        """Note that `layer` is about to run."""
        del self.entered[layer:], self.columns[layer:]  # a layer may run twice (gradient checkpointing)
        self.columns.append(self.alive.index)
        alive = self.alive
        self.entered.append(Block(alive.index, alive.length, alive.valid is not None, alive.bias))
        if layer in self.family.sources:
            past = 0 if self.cache is None else self.cache.physical_length(layer)
            self.lent[layer] = self.entered[layer], past

    def align(self, value: Any) -> Any:
        """A layer's argument, made for the unpruned sequence, for the tokens alive."""
        index = self.alive.index
        if index is None or value is None:
            return value
        key = (id(value), self.alive.drops)
        if key not in self._aligned:  # the value is kept too, so that its id stays its own
            places = index if self.alive.valid is None else index.clamp(min=0)
            self._aligned[key] = value, aligned(value, places, self.layout.length)
        return self._aligned[key][1]

    def layer_mask(self, layer: int, hidden: Tensor, given: Any) -> Any:
        """The attention mask of a layer; `given` is what stock code made for the unpruned sequence."""
        return self._masks.of(layer, hidden, given)

    def past_columns(self, layer: int) -> int:
        """Columns of earlier passes that a layer's attention reads, in the layer whose keys it shares."""
        cache = self.cache
        if cache is None:
            return 0
        source = self.family.layers[layer].source
        return cache.physical_length(layer) if source == layer else self.lent[source][1]

    def valid(self, layer: int, past: int) -> Tensor | None:
        """`[B, past + n]` which columns of a layer are real tokens, None if all are."""
        return self._joined(self._past_valid(layer) if past else None, self.alive.valid, past)

    def _joined(self, before: Tensor | None, now: Tensor | None, past: int) -> Tensor | None:
        if before is None and now is None:
            return None
        shape, device = (self.layout.rows, past), (now if before is None else before).device  # type: ignore[union-attr]
        before = torch.ones(shape, dtype=torch.bool, device=device) if before is None else before[:, -past:]
        shape = (self.layout.rows, self.alive.length)
        now = torch.ones(shape, dtype=torch.bool, device=device) if now is None else now.to(device)
        return torch.cat([before, now], dim=1)

    def _past_valid(self, layer: int) -> Tensor | None:
        past, cache = self.layout.past, self.cache
        held = None if cache is None else cache.held(layer)
        logical = None if self.mask is None else self.mask[:, :past].bool()
        if held is None:
            return logical
        if logical is None:
            return held.full(past) >= 0 if held.padded else None
        index = held.full(past).to(logical.device)
        return (index >= 0) & logical.gather(1, index.clamp(min=0))

    # -- bookkeeping -------------------------------------------------------------------------------------

    def finish(self) -> None:
        """After the last layer: tell the cache what its layers hold."""
        cache = self.cache
        if cache is None or not any(block.columns is not None for block in self.entered):
            return
        until = self.layout.past + self.layout.length - self.alive.appended
        made: dict[tuple[int, int, int], Kept] = {}
        kept: list[Kept | None] = []
        for layer, block in enumerate(self.entered):
            old = cache.held(layer)
            if block.columns is None and old is None:
                kept.append(None)
                continue
            key = (id(old), id(block.columns), id(block.bias))
            if key not in made:
                made[key] = held_now(self.layout, old, block, until)
            kept.append(made[key])
        cache.kept = kept
        cache.decode_from_cache |= bool(self.method and self.method.decode_from_cache)
