"""What happens at each seam, in the order in which a forward pass meets them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.method import Tap
from foveate.core.selection import Packed
from foveate.engine import inputs
from foveate.engine.cache import FoveatedCache, check_cache
from foveate.engine.forward import ForwardPass
from foveate.engine.layout import EncodedImage, Layout, build_layout
from foveate.engine.masks import stand_in
from foveate.engine.positions import renumber
from foveate.engine.recompute import Entry, remember, repeat
from foveate.engine.session import Call, Session
from foveate.errors import MissingTapError

Kwargs = dict[str, Any]
PreHook = Callable[[Session, nn.Module, tuple[Any, ...], Kwargs], Any]
PostHook = Callable[[Session, Any], None]


# -- seam 1: the vision tower is read


def before_tower(session: Session, module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> None:
    local = session.local
    if local.used:
        local.encoded, local.used = [], False
    local.readings = {}
    local.grids = session.family.tower_grids(args, kwargs)
    local.started = local.vision.start(next(module.parameters()).device)


def attention_reader(tap: Tap) -> PreHook:
    @torch.no_grad()
    def read(session: Session, module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> None:
        local = session.local
        if tap in session.taps and local.started is not None:  # not when a backward pass recomputes the block
            with local.tapping.span(next(module.parameters()).device):
                local.readings[tap] = session.family.read_attention(tap, module, args, kwargs, local.grids)

    return read


def hidden_reader(tap: Tap) -> PostHook:
    @torch.no_grad()
    def read(session: Session, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        local = session.local
        if tap in session.taps and local.started is not None:  # not when a backward pass recomputes the block
            with local.tapping.span(hidden.device):
                local.readings[tap] = session.family.read_hidden(hidden, local.grids)

    return read


def after_tower(session: Session, output: Any) -> None:
    local = session.local
    for number, grid in enumerate(local.grids):
        taps = {tap: values[number] for tap, values in local.readings.items()}
        local.encoded.append(EncodedImage(grid, taps))
    if local.started is not None:
        local.vision.stop(local.started)
        local.started = None


# -- around the base model


def before_base(session: Session, module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> Any:
    ids = kwargs.get("input_ids", args[0] if args else None)
    outputs, cache = kwargs.get("mm_encoder_outputs"), kwargs.get("past_key_values")
    visual = inputs.placeholders(session.family, ids, kwargs.get("inputs_embeds"))
    call = Call(visual, inputs.encoded_features(outputs), session.family.incoming(kwargs))
    seen = cache.rows.get("images") if isinstance(cache, FoveatedCache) else None
    call.fresh = inputs.fresh_images(visual, call.sizes, seen)
    inputs.check_placeholders(call)
    session.local.calls.append(call)
    if all(len(call.fresh[modality]) == len(given) for modality, given in call.sizes.items()):
        return None
    if call.features:
        return args, {**kwargs, "mm_encoder_outputs": inputs.keep_fresh(outputs, call.fresh)}
    return args, kwargs | session.family.take(kwargs, call.fresh)


def after_base(session: Session, output: Any) -> None:
    if session.local.calls:
        session.local.calls.pop()


# -- seam 2: before the language model


def before_text(session: Session, module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> Any:
    calls = session.local.calls
    if not calls or kwargs.get("inputs_embeds") is None:
        return None
    call, cache = calls[-1], kwargs.get("past_key_values")
    continues = isinstance(cache, FoveatedCache) and cache.is_pruned
    prefill = call.has_images
    if not prefill and not continues:
        return None
    if prefill:
        cache = _own_cache(module, cache, kwargs)
    call.forward = _begin(session, call, cache, kwargs, prefill)
    kwargs = {**kwargs, "past_key_values": cache}
    _keep_row_facts(call.forward, kwargs)
    return args, _enter_text(call.forward, kwargs)


def _own_cache(text: nn.Module, cache: Any, kwargs: Kwargs) -> FoveatedCache | None:
    if cache is not None:
        return FoveatedCache.adopt(cache)
    config: Any = text.config
    use_cache = kwargs.get("use_cache")
    if not (config.use_cache if use_cache is None else use_cache):
        return None
    own = FoveatedCache(config=config)
    check_cache(own)
    return own


def _begin(session: Session, call: Call, cache: FoveatedCache | None, kwargs: Kwargs, prefill: bool) -> ForwardPass:
    embeds: Tensor = kwargs["inputs_embeds"]
    past = 0 if cache is None else cache.get_seq_length()
    mask = inputs.padding_mask(kwargs.get("attention_mask"), embeds, past)
    local, trace = session.local, None
    if prefill:
        valid = None if mask is None else mask[:, past:].cpu()
        inputs.check_padding_side(valid, cache is not None)
        images = inputs.match_images(call, local.encoded)
        local.used = True
        per = session.method.per if session.method else "image"
        layout = build_layout(call.visual, valid, images, past, per, embeds.device)
        _check_taps(session, layout)
        trace = session.new_trace()
        trace.begin(layout)
        call.started = trace.prefill.start(embeds.device)
    else:
        layout = Layout(embeds.shape[1], past, torch.zeros(embeds.shape[:2], dtype=torch.bool), None, [])
    forward = ForwardPass(session.family, session.method, layout, mask, cache, trace, embeds.device)
    if not prefill and mask is not None:
        forward.alive.valid = mask[:, past:]
    return forward


def _keep_row_facts(forward: ForwardPass, kwargs: Kwargs) -> None:
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


def _check_taps(session: Session, layout: Layout) -> None:
    method = session.method
    for tap in method.taps(session.family.info) if method else ():
        if any(tap not in group.taps for group in layout.groups):
            raise MissingTapError(
                f"{method} needs {tap}, but the images were encoded outside foveate (or before it was "
                "active), so nothing was read in the vision tower. Pass `pixel_values` inside "
                "`foveate.prune`, or use a method that needs no taps."
            )


def _enter_text(forward: ForwardPass, kwargs: Kwargs) -> Kwargs:
    embeds: Tensor = kwargs["inputs_embeds"]
    positions: Any = kwargs.get("position_ids")
    before, length = forward.alive.valid, embeds.shape[1]
    packed = forward.select(0, embeds)
    if positions is None and (packed is not None or forward.probe is not None):
        past = forward.layout.past
        positions = torch.arange(past, past + length, device=embeds.device)[None]
    if packed is not None:
        embeds = packed.apply(embeds)
        positions = packed.gather(positions, batch_dim=-2, dim=-1)
        mode = forward.stages[0].positions
        if mode != "original":
            positions = renumber(packed, before, mode, length).to(positions.device)
    elif forward.cache is not None and forward.cache.decode_from_cache and forward.trace is None:
        start = forward.cache.physical_length(0)
        positions = torch.arange(start, start + length, device=embeds.device).expand(embeds.shape[0], -1)
    if forward.probe is not None:
        forward.alive.append(forward.probe.length, embeds.device)
        embeds, positions = forward.probe.append(embeds), forward.probe.append_positions(positions)
    if forward.took_over:
        kwargs["attention_mask"] = stand_in(embeds.device)
    return {**kwargs, "inputs_embeds": embeds, "position_ids": positions}


def after_text(session: Session, output: Any) -> None:
    calls = session.local.calls
    if not calls or (forward := calls[-1].forward) is None:
        return
    if output is not None:  # None: the forward pass raised
        packed = forward.select(len(session.family.parts.layers), output.last_hidden_state)
        if packed is not None:
            output.last_hidden_state = packed.apply(output.last_hidden_state)
        if session.full_length:
            output.last_hidden_state = forward.alive.scatter(output.last_hidden_state)
        forward.finish()
        if forward.trace is not None:
            forward.trace.end(forward.cache)
    if forward.trace is not None and calls[-1].started is not None:
        forward.trace.prefill.stop(calls[-1].started)
    calls[-1].forward = None


# -- seam 3: before every decoder layer


def before_layer(number: int) -> PreHook:
    def hook(session: Session, module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> Any:
        calls = session.local.calls
        forward = calls[-1].forward if calls else None
        if forward is None:
            return repeat(number, args, kwargs)
        hidden = args[0] if args else kwargs["hidden_states"]
        embeddings = forward.position_embeddings or kwargs["position_embeddings"]
        entry = Entry(probe=forward.probe)
        if number > 0:
            hidden, embeddings, entry.packed = _shrink(session, forward, number, hidden, embeddings)
            entry.probe = forward.probe  # the last stage removes it
        if entry.probe is not None:
            hidden = entry.probe.add(number, hidden)
        forward.enter(number, hidden, embeddings)
        if not forward.took_over:
            return None
        forward.position_embeddings = embeddings
        entry.arguments = {
            "position_embeddings": tuple(t.to(hidden.device) for t in embeddings),
            "attention_mask": forward.layer_mask(number, hidden),
            "position_ids": None,  # only read to detect packed sequences: gaps would look like borders
        }
        remember(number, module, kwargs, entry)
        kwargs = {k: v for k, v in kwargs.items() if k != "hidden_states"}
        return (hidden, *args[1:]), kwargs | entry.arguments

    return hook


def _shrink(
    session: Session, forward: ForwardPass, number: int, hidden: Tensor, embeddings: tuple[Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor], Packed | None]:
    before, length = forward.alive.valid, forward.alive.length
    packed = forward.select(number, hidden)
    if packed is None:
        return hidden, embeddings, None
    shorter = packed.apply(hidden)
    mode = forward.stages[number].positions
    if mode == "original":
        cos, sin = (packed.gather(t, batch_dim=-3, dim=-2) for t in embeddings)
    else:
        rotary: Any = session.family.parts.text.rotary_emb
        cos, sin = rotary(shorter, renumber(packed, before, mode, length).to(shorter.device))
    return shorter, (cos, sin), packed
