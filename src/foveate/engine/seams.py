"""What happens at the seams of the language model, in the order in which a forward pass meets them."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.probe import Probe
from foveate.core.selection import Packed
from foveate.engine import prefill, recording
from foveate.engine.alive import scatter
from foveate.engine.cache import FoveatedCache
from foveate.engine.call import Kind
from foveate.engine.capture import AttentionCall
from foveate.engine.draft import read_prompt_first, refuse_a_second_reading
from foveate.engine.forward import ForwardPass
from foveate.engine.inputs import by_name, check_placeholders, read_call
from foveate.engine.naming import CACHE
from foveate.engine.positions import renumber
from foveate.engine.recompute import LayerChange, apply_again, keep_for_backward
from foveate.engine.session import Session, take_offsets
from foveate.errors import ConfigurationError

Kwargs = dict[str, Any]
PreHook = Callable[[Session, nn.Module, tuple[Any, ...], Kwargs], Any]
PostHook = Callable[[Session, nn.Module, Any, Any], Any]


# -- around the whole model: what its head will do with the hidden states


def before_head(session: Session, module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> None:
    """Assisted decoding asks for the logits of its draft and of the token before it, which says how long it is."""
    given = by_name(module, args, kwargs)
    keep = given.get("logits_to_keep")
    session.local.draft = max(keep - 1, 0) if isinstance(keep, int) else 0
    images = given.get("mm_encoder_outputs") or session.family.incoming(given)
    if session.method is None or session.full_length or not images:
        return
    for name, value in (("labels", given.get("labels")), ("logits_to_keep", keep)):
        if isinstance(value, Tensor):
            raise ConfigurationError(
                f"`{name}` refers to tokens of the unpruned prompt, of which some are dropped; open the block with "
                "`foveate.prune(model, method, full_length=True)`, which gives all places back."
            )


# -- around the base model


def before_base(session: Session, module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> Any:
    """Decide what this call is; leave out images that the cache has seen."""
    local = session.local
    local.call = local.prompt_states = None
    given = by_name(module, args, kwargs)
    draft, local.draft = local.draft, 0
    behind = given
    if session.method is not None:
        refuse_a_second_reading(given)
        behind = read_prompt_first(session, module, given, draft)
    call, kept = read_call(session.family, behind)
    if session.method is not None:
        if call.kind is Kind.PREFILL:
            check_placeholders(session.family, call)
        elif given.get("inputs_embeds") is not None and given.get("input_ids") is None:
            _warn_about_embeddings(given)
    if call.kind is Kind.PLAIN and hasattr(module, "rope_deltas") and session.family.has_axes:
        prefill.begin_with_text(given.get(CACHE), given.get("attention_mask"))
    local.call = call
    cache = kept.get(CACHE)
    if call.kind is not Kind.PLAIN and isinstance(cache, FoveatedCache):
        cache.in_pass = True  # some models make their masks before they call their language model
        call.cache = weakref.ref(cache)
    return None if kept is given else ((), kept)


def _warn_about_embeddings(kwargs: Kwargs) -> None:
    cache = kwargs.get(CACHE)
    if kwargs["inputs_embeds"].shape[1] > 1 and (cache is None or cache.get_seq_length() == 0):
        warnings.warn(
            "inputs_embeds came without images, so foveate cannot tell visual tokens from text and prunes nothing. "
            "Pass input_ids and pixel_values (or mm_encoder_outputs) instead.",
            stacklevel=2,
        )


def after_base(session: Session, module: nn.Module, args: Any, output: Any) -> None:
    """Join the hidden states of a prompt with those of its draft; positions belong to conversations, not to the
    model."""
    local = session.local
    call, local.call = local.call, None
    if call is not None and call.cache is not None and (cache := call.cache()) is not None:
        cache.in_pass = False
    if output is not None and local.prompt_states is not None:
        output.last_hidden_state = torch.cat([local.prompt_states, output.last_hidden_state], dim=1)
    local.prompt_states = None
    deltas = getattr(module, "rope_deltas", None)
    if call is not None and call.recorded and isinstance(deltas, Tensor):
        take_offsets(module, deltas)


# -- seam 2: before the language model


def before_text(session: Session, module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> Any:
    """Begin a pass. Nothing is dropped here: stock code prepares the whole sequence, every layer takes its part."""
    call = session.local.call
    if call is None or call.kind is Kind.PLAIN:
        return None
    given = by_name(module, args, kwargs)
    if call.kind is Kind.PREFILL:
        kwargs = prefill.begin(session, call, module, given)
    else:
        kwargs = prefill.go_on(session, call, given)
    return None if kwargs is given else ((), kwargs)


def after_text(session: Session, module: nn.Module, args: Any, output: Any) -> None:
    """End a pass. `output` is None if it raised."""
    call = session.local.call
    if call is None or (forward := call.forward) is None:
        return
    call.forward = None
    cache = forward.cache
    if cache is not None:
        cache.in_pass = False
    if output is not None:
        packed = forward.select(len(session.family.parts.layers), output.last_hidden_state)
        if packed is not None:
            output.last_hidden_state = packed.apply(output.last_hidden_state)
        if session.full_length:
            _restore_length(forward, output)
        if call.last:  # stock code would have left the others out before its head
            output.last_hidden_state = output.last_hidden_state[:, -call.last :]
        forward.finish()
        if cache is not None and call.records:  # a turn that failed was never there
            cache.conversation.add(call.records)
        if forward.trace is not None:
            recording.end(forward.trace, cache)
    if forward.trace is not None and call.started is not None:
        forward.trace.prefill.stop(call.started)


def _restore_length(forward: ForwardPass, output: Any) -> None:
    """Hidden states at the unpruned length."""
    length = forward.layout.length - forward.alive.appended
    output.last_hidden_state = scatter(output.last_hidden_state, forward.alive.index, length)
    states = output.get("hidden_states")
    if states is None:
        return
    # the first is what layer 0 was given, the others are what layers gave
    columns = [forward.columns[max(number - 1, 0)] for number in range(len(states) - 1)]
    full = [scatter(state, index, length) for state, index in zip(states[:-1], columns, strict=True)]
    output.hidden_states = (*full, output.last_hidden_state)


# -- seam 3: before every decoder layer


def heard(layer: int, session: Session, call: AttentionCall) -> None:
    """Queries and keys of a decoder layer."""
    forward = session.local.call.forward if session.local.call else None
    if forward is not None:
        forward.hear(layer, call)


def before_layer(number: int) -> PreHook:
    """Select, if this layer is a stage; give the layer its part of what runs along the sequence."""

    def hook(session: Session, module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> Any:
        forward = session.local.call.forward if session.local.call else None
        if forward is None:
            return apply_again(number, args, kwargs)
        if not (forward.stages or forward.took_over):
            return None
        given = by_name(module, args, kwargs)
        name = session.family.hidden_names[number]
        hidden = stock = given[name]
        if forward.deepstack is not None:
            hidden = forward.deepstack.behind(number - 1, hidden, forward.alive.index, forward.layout.length)
        before = forward.alive.valid
        packed = forward.select(number, one_stream(hidden))
        if packed is not None:
            hidden = repack(packed, hidden)
            _renumber(forward, number, hidden, given, packed, before)
        if forward.probe is not None:
            hidden = _with_probe(forward.probe, number, hidden)
        forward.enter(number)
        entry = LayerChange(packed, forward.probe)
        if forward.took_over:
            entry.arguments = _arguments(forward, number, one_stream(hidden), given)
        elif hidden is stock:
            return None
        keep_for_backward(number, module, given, entry)
        rest = {k: v for k, v in given.items() if k != name}
        return (hidden,), rest | entry.arguments

    return hook


def one_stream(hidden: Tensor) -> Tensor:
    """`[B, n, D]` what a method sees of hidden states; some models carry several streams, `[4, B, n, D]` (AltUp)."""
    return hidden if hidden.dim() == 3 else hidden[0]


def _with_probe(probe: Probe, number: int, hidden: Tensor) -> Tensor:
    """Add the probe's vector, to the stream that the layer computes with where there are several."""
    if hidden.dim() == 3:
        return probe.add(number, hidden)
    return torch.stack([probe.add(number, hidden[0]), *hidden[1:]])


def repack(packed: Packed, hidden: Tensor) -> Tensor:
    """Select and merge the survivors, in every stream."""
    return packed.apply(hidden) if hidden.dim() == 3 else torch.stack([packed.apply(stream) for stream in hidden])


def _renumber(
    forward: ForwardPass, number: int, hidden: Tensor, given: Kwargs, packed: Packed, before: Tensor | None
) -> None:
    """Rotary embeddings of the survivors, where the method does not keep the original positions."""
    assert forward.method is not None
    mode = forward.stages[number].positions or forward.method.positions
    if mode != "original":
        embeddings = given.get("position_embeddings")
        if not isinstance(embeddings, tuple) or not all(isinstance(t, Tensor) and t.dim() == 3 for t in embeddings):
            raise ConfigurationError(
                f"positions={mode!r} renumbers rotary embeddings, and '{forward.family.name}' has others than a pair "
                "of cosines and sines for all layers; keep the original positions."
            )
        forward.rotary = forward.family.rotary(hidden, renumber(packed, before, mode).to(hidden.device))
    elif forward.rotary is not None:
        forward.rotary = tuple(packed.gather(t, batch_dim=-3, dim=-2) for t in forward.rotary)


def _arguments(forward: ForwardPass, number: int, hidden: Tensor, given: Kwargs) -> Kwargs:
    """The layer's arguments that differ from what stock code made for the whole sequence."""
    own: Kwargs = {}
    name_of_states, cache = forward.family.hidden_names[number], forward.cache
    if cache is not None and forward.alive.index is not None:
        cache.free_window(number, forward.layout.past)
    for name, value in given.items():
        if name in (name_of_states, CACHE, "attention_mask", "shared_kv_states") or value is None:
            continue
        if name == "position_embeddings" and forward.rotary is not None:
            own[name] = tuple(t.to(hidden.device) for t in forward.rotary)
            continue
        fitting = forward.align(value)
        if fitting is not value:
            own[name] = fitting
    if "position_ids" in given and "position_embeddings" in given:
        own["position_ids"] = None  # only read to detect packed sequences: gaps would look like borders
    own["attention_mask"] = forward.layer_mask(number, hidden, given.get("attention_mask"))
    return own
