"""The hooks: where pruning touches a stock model, and in which order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from foveate.core import inputs
from foveate.core.cache import FoveatedCache, check_cache
from foveate.core.forward import ForwardPass
from foveate.core.layout import EncodedImage, Layout, build_layout
from foveate.core.masks import stand_in
from foveate.core.method import Tap
from foveate.core.positions import renumber
from foveate.core.session import Call, Session, current_session
from foveate.errors import MissingTapError

Kwargs = dict[str, Any]


class Seams:
    """Hooks of one session. Each acts only where its session is the one in force."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.family = session.family
        self.handles: list[RemovableHandle] = []

    def install(self) -> None:
        parts, method = self.family.parts, self.session.method
        taps = tuple(method.taps(self.family.info)) if method else ()
        self._pre(parts.tower, self.before_tower)
        for tap in taps:
            block = parts.blocks[self.family.block_of(tap)]
            if tap.kind == "hidden":
                self._post(block, self._hidden_reader(tap))
            else:
                self._pre(self.family.attention_module(block), self._attention_reader(tap))
        self._post(parts.tower, self.after_tower)
        self._pre(parts.base, self.before_base)
        self._pre(parts.text, self.before_text)
        for number, layer in enumerate(parts.layers):
            self._pre(layer, self._layer_hook(number))
        self._post(parts.text, self.after_text, always=True)
        self._post(parts.base, self.after_base, always=True)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def _pre(self, module: nn.Module, hook: Callable[[nn.Module, tuple[Any, ...], Kwargs], Any]) -> None:
        def guarded(module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> Any:
            return hook(module, args, kwargs) if self._in_force() else None

        self.handles.append(module.register_forward_pre_hook(guarded, with_kwargs=True))

    def _post(self, module: nn.Module, hook: Callable[[Any], None], always: bool = False) -> None:
        def guarded(module: nn.Module, args: Any, output: Any) -> None:
            if self._in_force():
                hook(output)

        self.handles.append(module.register_forward_hook(guarded, always_call=always))

    def _in_force(self) -> bool:
        return current_session(self.family.parts.base) is self.session

    # -- seam 1: the vision tower is read ----------------------------------------------------------------

    def before_tower(self, module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> None:
        local = self.session.local
        if local.used:
            local.encoded, local.used = [], False
        local.readings = {}
        local.grids = self.family.tower_grids(args, kwargs)
        local.started = local.vision.start(next(module.parameters()).device)

    def _attention_reader(self, tap: Tap) -> Callable[[nn.Module, tuple[Any, ...], Kwargs], None]:
        @torch.no_grad()
        def read(module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> None:
            local = self.session.local
            local.readings[tap] = self.family.read_attention(tap, module, args, kwargs, local.grids)

        return read

    def _hidden_reader(self, tap: Tap) -> Callable[[Any], None]:
        @torch.no_grad()
        def read(output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            local = self.session.local
            local.readings[tap] = self.family.read_hidden(hidden, local.grids)

        return read

    def after_tower(self, output: Any) -> None:
        local = self.session.local
        for number, grid in enumerate(local.grids):
            taps = {tap: values[number] for tap, values in local.readings.items()}
            local.encoded.append(EncodedImage(grid, taps))
        if local.started is not None:
            local.vision.stop(local.started)
            local.started = None

    # -- around the base model ---------------------------------------------------------------------------

    def before_base(self, module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> Any:
        ids = kwargs.get("input_ids", args[0] if args else None)
        outputs, cache = kwargs.get("mm_encoder_outputs"), kwargs.get("past_key_values")
        visual = inputs.placeholders(self.family, ids, kwargs.get("inputs_embeds"))
        features = inputs.encoded_features(outputs)
        seen = cache.rows.get("images") if isinstance(cache, FoveatedCache) else None
        fresh = inputs.fresh_images(visual, features, seen)
        call = Call(visual, features, fresh, self.family.incoming(kwargs))
        inputs.check_placeholders(call)
        self.session.local.calls.append(call)
        if any(len(fresh[modality]) < len(given) for modality, given in features.items()):
            return args, {**kwargs, "mm_encoder_outputs": inputs.keep_fresh(outputs, fresh)}
        return None

    def after_base(self, output: Any) -> None:
        if self.session.local.calls:
            self.session.local.calls.pop()

    # -- seam 2: before the language model ---------------------------------------------------------------

    def before_text(self, module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> Any:
        calls = self.session.local.calls
        if not calls or kwargs.get("inputs_embeds") is None:
            return None
        call, cache = calls[-1], kwargs.get("past_key_values")
        continues = isinstance(cache, FoveatedCache) and cache.is_pruned
        prefill = call.has_images
        if not prefill and not continues:
            return None
        if prefill:
            cache = self._own_cache(module, cache, kwargs)
        call.forward = self._begin(call, cache, kwargs, prefill)
        kwargs = {**kwargs, "past_key_values": cache}
        self._keep_row_facts(call.forward, kwargs)
        return args, self._enter_text(call.forward, kwargs)

    def _own_cache(self, text: nn.Module, cache: Any, kwargs: Kwargs) -> FoveatedCache | None:
        if cache is not None:
            return FoveatedCache.adopt(cache)
        config: Any = text.config
        use_cache = kwargs.get("use_cache")
        if not (config.use_cache if use_cache is None else use_cache):
            return None
        own = FoveatedCache(config=config)
        check_cache(own)
        return own

    def _begin(self, call: Call, cache: FoveatedCache | None, kwargs: Kwargs, prefill: bool) -> ForwardPass:
        embeds: Tensor = kwargs["inputs_embeds"]
        past = 0 if cache is None else cache.get_seq_length()
        mask = inputs.padding_mask(kwargs.get("attention_mask"), embeds, past)
        local, trace = self.session.local, None
        if prefill:
            valid = None if mask is None else mask[:, past:].cpu()
            inputs.check_padding_side(valid, cache is not None)
            images = inputs.match_images(call, local.encoded)
            local.used = True
            per = self.session.method.per if self.session.method else "image"
            layout = build_layout(call.visual, valid, images, past, per, embeds.device)
            self._check_taps(layout)
            trace = self.session.new_trace()
            trace.begin(layout)
            call.started = trace.prefill.start(embeds.device)
        else:
            layout = Layout(embeds.shape[1], past, torch.zeros(embeds.shape[:2], dtype=torch.bool), None, [])
        forward = ForwardPass(self.family, self.session.method, layout, mask, cache, trace, embeds.device)
        if not prefill and mask is not None:
            forward.alive.valid = mask[:, past:]
        return forward

    def _keep_row_facts(self, forward: ForwardPass, kwargs: Kwargs) -> None:
        """What stock models keep on themselves, kept per conversation."""
        cache, positions = forward.cache, kwargs.get("position_ids")
        if cache is None:
            return
        if forward.trace is not None:
            counts = forward.layout.images_per_row()
            cache.rows["images"] = cache.rows.get("images", torch.zeros_like(counts)) + counts
        if positions is None or positions.dim() != 3:
            return
        past, mask = forward.layout.past, forward.mask
        if forward.trace is not None:
            length = past + positions.shape[-1] if mask is None else mask.sum(1, keepdim=True)
            cache.rows["rope_deltas"] = positions[-3:].amax((0, 2))[:, None] + 1 - length
        elif "rope_deltas" in cache.rows:
            deltas = cache.rows["rope_deltas"]
            kwargs["position_ids"] = inputs.continued_positions(positions, mask, past, deltas)

    def _check_taps(self, layout: Layout) -> None:
        method = self.session.method
        for tap in method.taps(self.family.info) if method else ():
            if any(tap not in group.taps for group in layout.groups):
                raise MissingTapError(
                    f"{method} needs {tap}, but the images were encoded outside foveate (or before it was "
                    "active), so nothing was read in the vision tower. Pass `pixel_values` inside "
                    "`foveate.prune`, or use a method that needs no taps."
                )

    def _enter_text(self, forward: ForwardPass, kwargs: Kwargs) -> Kwargs:
        embeds, positions = kwargs["inputs_embeds"], kwargs.get("position_ids")
        before = forward.alive.valid
        packed = forward.select(0, embeds)
        if packed is not None:
            if positions is None:
                start = forward.layout.past
                positions = torch.arange(start, start + embeds.shape[1], device=embeds.device)[None]
            positions = packed.gather(positions, batch_dim=-2, dim=-1)
            mode = forward.stages[0].positions
            if mode != "original":
                positions = renumber(packed, before, mode, embeds.shape[1]).to(positions.device)
            kwargs |= {"inputs_embeds": packed.apply(embeds), "position_ids": positions}
        elif forward.cache is not None and forward.cache.decode_from_cache and forward.trace is None:
            start = forward.cache.physical_length(0)
            now = torch.arange(start, start + embeds.shape[1], device=embeds.device)
            kwargs["position_ids"] = now.expand(embeds.shape[0], -1)
        if forward.took_over:
            kwargs["attention_mask"] = stand_in(embeds.device)
        return kwargs

    def after_text(self, output: Any) -> None:
        calls = self.session.local.calls
        if not calls or (forward := calls[-1].forward) is None:
            return
        if output is not None:  # None: the forward pass raised
            forward.finish()
            if forward.trace is not None:
                forward.trace.end(forward.cache)
        if forward.trace is not None and calls[-1].started is not None:
            forward.trace.prefill.stop(calls[-1].started)
        calls[-1].forward = None

    # -- seam 3: before every decoder layer --------------------------------------------------------------

    def _layer_hook(self, number: int) -> Callable[[nn.Module, tuple[Any, ...], Kwargs], Any]:
        def before_layer(module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> Any:
            calls = self.session.local.calls
            if not calls or (forward := calls[-1].forward) is None:
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            embeddings = forward.position_embeddings or kwargs["position_embeddings"]
            if number > 0:
                hidden, embeddings = self._shrink(forward, number, hidden, embeddings)
            forward.enter(number, hidden, embeddings)
            if not forward.took_over:
                return None
            forward.position_embeddings = embeddings
            kwargs = {k: v for k, v in kwargs.items() if k != "hidden_states"}
            kwargs |= {
                "position_embeddings": tuple(t.to(hidden.device) for t in embeddings),
                "attention_mask": forward.layer_mask(number, hidden),
                "position_ids": None,  # only read to detect packed sequences: gaps would look like borders
            }
            return (hidden, *args[1:]), kwargs

        return before_layer

    def _shrink(
        self, forward: ForwardPass, number: int, hidden: Tensor, embeddings: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        before, length = forward.alive.valid, forward.alive.length
        packed = forward.select(number, hidden)
        if packed is None:
            return hidden, embeddings
        shorter = packed.apply(hidden)
        mode = forward.stages[number].positions
        if mode == "original":
            cos, sin = (packed.gather(t, batch_dim=-3, dim=-2) for t in embeddings)
        else:
            rotary: Any = self.family.parts.text.rotary_emb
            cos, sin = rotary(shorter, renumber(packed, before, mode, length).to(shorter.device))
        return shorter, (cos, sin)
