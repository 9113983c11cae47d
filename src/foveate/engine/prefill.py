"""The beginning of a pass of the language model: over a prompt with images, or over text behind one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache

from foveate.engine import inputs, recording
from foveate.engine.alive import check_fixed
from foveate.engine.cache import FoveatedCache, can_adopt, check_cache, check_windows
from foveate.engine.call import Call
from foveate.engine.conversation import ImageSpan, PrefillRecord
from foveate.engine.deepstack import Deepstack
from foveate.engine.forward import ForwardPass
from foveate.engine.layout import Layout, build_layout
from foveate.engine.matching import match_images
from foveate.engine.naming import CACHE
from foveate.engine.positions import behind_pruned, continued
from foveate.engine.session import Session
from foveate.errors import ConfigurationError, FoveateError, InputError, MissingTapError

Kwargs = dict[str, Any]


def begin(session: Session, call: Call, text: nn.Module, kwargs: Kwargs) -> Kwargs:
    """Begin a prefill; returns the arguments of the text model.

    Raises:
        InputError, UnsupportedCacheError, MissingTapError: if it cannot be pruned. What prunes nothing refuses nothing.
    """
    embeds = _embeds(kwargs)
    cache = _cache(session, text, kwargs)
    past = 0 if kwargs.get(CACHE) is None else kwargs[CACHE].get_seq_length()
    try:
        given = _given_mask(call, kwargs)
        padded = call.padded if given is call.mask else None
        mask = inputs.padding_mask(given, embeds.shape[0], embeds.shape[1], past, padded)
        layout = _layout(session, call, mask, past, cache is not None, embeds.device)
    except FoveateError:
        if session.method is None and (cache is None or not cache.is_pruned):
            return kwargs  # stock code judges it
        raise
    for encoded in session.local.tower_calls:
        encoded.used = True
    trace = session.new_prefill()
    recording.begin(trace, layout)
    call.started = trace.prefill.start(embeds.device)
    forward = call.forward = ForwardPass(session.family, session.method, layout, mask, cache, trace, embeds.device)
    _check_positions(forward)
    if cache is not None:
        kwargs = {**kwargs, CACHE: cache}
        cache.in_pass = call.recorded = True
        cache.padded |= mask is not None
        cache.conversation.mrope |= _has_axes(kwargs.get("position_ids"))
        call.records = _records(forward, kwargs.get("position_ids"))
    if cache is not None and any(stage.compact_earlier for stage in forward.stages.values()):
        for layer in range(len(cache.layers)):  # what is compacted must be held
            cache.free_window(layer, past)
    if forward.stages:
        forward.deepstack, kwargs = Deepstack.taken(kwargs)
        kwargs = _whole_pass(call, kwargs)
    return _append_probe(forward, kwargs)


def _check_positions(forward: ForwardPass) -> None:
    """Published code that renumbers positions knows one turn with images."""
    method = forward.method
    if method is None or not forward.layout.past:
        return
    if any((stage.positions or method.positions) != "original" for stage in forward.stages.values()):
        raise ConfigurationError(
            f"{method.name} renumbers positions, as published code does that knows one turn only; an image in a later "
            "turn needs positions='original'."
        )


def begin_with_text(cache: Any, mask: Any) -> None:
    """A conversation without an image yet has positions without an offset, whatever other conversations leave on the
    model (M-RoPE)."""
    if isinstance(cache, DynamicCache) and cache.get_seq_length() == 0 and can_adopt(cache):
        own = FoveatedCache.adopt(cache)
        own.conversation.mrope = True
        own.padded = isinstance(mask, Tensor) and not bool(mask.all())


def go_on(session: Session, call: Call, kwargs: Kwargs) -> Kwargs:
    """Begin a pass over new text behind a known conversation; returns the arguments of the text model."""
    embeds = _embeds(kwargs)
    cache: FoveatedCache = kwargs[CACHE]
    call.recorded = True
    rows, new, past = embeds.shape[0], embeds.shape[1], cache.get_seq_length()
    mask = _continued_padding(cache, _given_mask(call, kwargs), rows, new, past)
    positions = None
    if cache.decode_from_cache and (held := cache.held(cache.counting())) is not None:
        positions = behind_pruned(held.index.to(embeds.device), held.until, new, past, mask)
    elif cache.conversation.mrope:
        positions = continued(cache.conversation.offsets(embeds.device), session.family.axes, rows, new, past, mask)
    if positions is not None:
        kwargs = {**kwargs, "position_ids": positions}
    if cache.is_pruned:
        layout = Layout(new, past, torch.zeros((rows, new), dtype=torch.bool), None, [])
        call.forward = ForwardPass(session.family, None, layout, mask, cache, None, embeds.device)
        cache.in_pass = True
        if mask is not None and new > 1:
            call.forward.alive.valid = mask[:, past:].bool()
        kwargs = _whole_pass(call, kwargs)
    return kwargs


def _continued_padding(cache: FoveatedCache, given: Any, rows: int, new: int, past: int) -> Tensor | None:
    """The padding mask of a continued conversation, None if nothing is padding. A step of one token does not look: its
    token is real, and what comes before is known."""
    if not cache.is_pruned and not (isinstance(given, Tensor) and given.dim() == 2):
        return None  # nothing was taken over, so whatever stock code understands will do
    if new == 1 and isinstance(given, Tensor) and given.shape == (rows, past + 1):
        return given if cache.padded else None
    mask = inputs.padding_mask(given, rows, new, past)
    cache.padded |= mask is not None
    return mask


def _given_mask(call: Call, kwargs: Kwargs) -> Any:
    """The padding mask; some models prepare masks per kind of layer before they call their language model."""
    given = kwargs.get("attention_mask")
    plain = given is None or (isinstance(given, Tensor) and given.dim() == 2)
    return given if plain else call.mask


def _embeds(kwargs: Kwargs) -> Tensor:
    """`[B, n, D]` what enters the language model; where that joins images itself, nothing but the shape is known."""
    embeds = kwargs.get("inputs_embeds")
    if embeds is None:
        ids: Tensor = kwargs["input_ids"]
        embeds = torch.empty(*ids.shape, 0, device=ids.device)
    return embeds


def _whole_pass(call: Call, kwargs: Kwargs) -> Kwargs:
    """Layers that share keys may be run on the last tokens only (Gemma 4); masks of ours are for all. Such models also
    take a pruned sequence for one that was cut already, and would run their head on all of it."""
    if "logits_to_keep" not in kwargs:
        return kwargs
    asked = kwargs.get("logits_to_keep")
    call.last = asked if isinstance(asked, int) else 0
    return {k: v for k, v in kwargs.items() if k != "logits_to_keep"}


def _cache(session: Session, text: nn.Module, kwargs: Kwargs) -> FoveatedCache | None:
    """The cache of this prefill, ours; None without one, or if nothing is pruned and it cannot be ours."""
    cache = kwargs.get(CACHE)
    if session.method is None:
        return FoveatedCache.adopt(cache) if cache is not None and can_adopt(cache) else None
    if cache is not None:
        windowed = [i for i, facts in enumerate(session.family.layers) if facts.kind in ("sliding", "chunked")]
        check_windows(cache, windowed)
        if text.training and getattr(text, "gradient_checkpointing", False):
            raise InputError(
                "Layers with gradient checkpointing keep no KV cache while they train, so answers cannot be generated. "
                "Call model.eval() or disable gradient checkpointing first; for a loss pass use_cache=False."
            )
        return FoveatedCache.adopt(cache)
    config: Any = text.config
    use_cache = kwargs.get("use_cache")
    wanted = config.use_cache if use_cache is None else use_cache
    if not wanted or (text.training and getattr(text, "gradient_checkpointing", False)):
        return None  # stock code goes without one too
    own = FoveatedCache(config=config)
    check_cache(own)
    return own


def _layout(
    session: Session, call: Call, mask: Tensor | None, past: int, caching: bool, device: torch.device
) -> Layout:
    valid = None if mask is None else mask[:, past:].cpu()
    if session.method is not None:
        inputs.check_padding_side(valid, caching)
    images = match_images(session.family, call, [encoded.images for encoded in session.local.tower_calls])
    per = session.method.per if session.method else "image"
    layout = build_layout(call.visual, valid, images, past, per, device)
    for tap in session.taps:
        if any(tap not in group.taps for group in layout.groups):
            raise MissingTapError(
                f"{session.method} needs {tap}, but the images were encoded outside foveate (or before it was "
                "active), so nothing was read in the vision tower. Pass `pixel_values` inside "
                "`foveate.prune`, or use a method that needs no taps."
            )
    if session.tower_stages:
        _check_tower(session, layout)
    return layout


def _check_tower(session: Session, layout: Layout) -> None:
    """What a method with stages in the vision tower needs of the images."""
    if any(left is None for group in layout.groups for left in group.left):
        raise MissingTapError(
            f"{session.method} prunes the vision tower, but the images were encoded outside foveate (or before it was "
            "active). Pass `pixel_values` inside `foveate.prune`."
        )
    for group in layout.groups:
        check_fixed(group)


def _has_axes(positions: Tensor | None) -> bool:
    return positions is not None and positions.dim() == 3


def _records(forward: ForwardPass, positions: Tensor | None) -> list[PrefillRecord]:
    """What this prefill brings into each row: images, and with M-RoPE where positions go on behind each."""
    layout = forward.layout
    offsets = [[0] * len(spans) for spans in layout.spans]
    if positions is not None and _has_axes(positions):
        offsets = _offsets(forward, positions)
    start, end = layout.past, layout.past + layout.length
    return [
        PrefillRecord(
            start,
            end,
            tuple(ImageSpan(a + start, b + start, o, n) for (a, b), o, n in zip(spans, found, pieces, strict=True)),
        )
        for spans, found, pieces in zip(layout.spans, offsets, layout.pieces, strict=True)
    ]


def _offsets(forward: ForwardPass, positions: Tensor) -> list[list[int]]:
    """For every image, position of the text behind it minus the real tokens before that text. One synchronisation."""
    layout, axes = forward.layout, positions[-forward.family.axes :].amax(0).long().expand(forward.layout.rows, -1)
    follow = F.pad(axes, (0, 1))
    follow[:, -1] = axes.amax(1) + 1  # behind the last token of a row
    real = torch.ones_like(axes) if forward.mask is None else forward.mask[:, layout.past :].long()
    before = 0 if forward.mask is None else forward.mask[:, : layout.past].sum(1, keepdim=True)
    count = F.pad(real.cumsum(1), (1, 0)) + (layout.past if forward.mask is None else before)
    rows = [row for row, spans in enumerate(layout.spans) for _ in spans]
    ends = [end for spans in layout.spans for _, end in spans]
    found = (follow - count)[rows, ends].tolist()
    return [[found.pop(0) for _ in spans] for spans in layout.spans]


def _seen_by_probe(mask: Any, length: int) -> Any:
    """A mask (or one per kind of layer) with a probe behind the prompt, which sees what the last token sees."""
    if isinstance(mask, dict):
        return {kind: _seen_by_probe(one, length) for kind, one in mask.items()}
    if mask is None or mask.dim() == 2:
        return None if mask is None else F.pad(mask, (0, length), value=1)
    if mask.dim() != 4:
        return mask
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    longer = F.pad(mask, (0, length), value=hidden)
    rows = longer[:, :, -1:].repeat(1, 1, length, 1)
    own = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    rows[..., -length:] = (
        own if mask.dtype == torch.bool else torch.zeros_like(rows[..., -length:]).masked_fill(~own, hidden)
    )
    return torch.cat([longer, rows], dim=2)


def _append_probe(forward: ForwardPass, kwargs: Kwargs) -> Kwargs:
    """Put the method's probe behind the prompt, before stock code prepares masks and positions."""
    probe = forward.probe
    if probe is None:
        return kwargs
    embeds, positions = kwargs.get("inputs_embeds"), kwargs.get("position_ids")
    if embeds is None:
        raise ConfigurationError(
            f"{forward.method} appends tokens behind the prompt, which '{forward.family.name}' cannot be given: its "
            "language model joins images and text itself."
        )
    length = embeds.shape[1]
    if positions is None:
        past = forward.layout.past
        positions = torch.arange(past, past + length, device=embeds.device)[None]
    own = {"inputs_embeds": probe.append(embeds), "position_ids": probe.append_positions(positions)}
    own["attention_mask"] = _seen_by_probe(kwargs.get("attention_mask"), probe.length)
    if (inputs_of_layers := kwargs.get("per_layer_inputs")) is not None:  # `[B, n, layers, D]`: a probe has none
        own["per_layer_inputs"] = F.pad(inputs_of_layers, (0, 0, 0, 0, 0, probe.length))
    forward.append(probe.length)
    return {**kwargs, **own}
