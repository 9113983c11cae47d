"""Assisted decoding: its first pass holds the prompt *and* a draft of the answer, which the choice must not see."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foveate.engine.cache import FoveatedCache
from foveate.engine.inputs import read_call
from foveate.engine.naming import CACHE
from foveate.engine.session import Session
from foveate.errors import InputError

Kwargs = dict[str, Any]


def read_prompt_first(session: Session, base: nn.Module, kwargs: Kwargs, draft: int) -> Kwargs:
    """Read the prompt on its own, as an ordinary prefill; what is left of the call is the draft behind it.

    Its hidden states wait in `session.local.prompt_states` for those of the draft. Without a cache, images or a draft
    nothing happens.
    """
    if not draft or kwargs.get(CACHE) is None:
        return kwargs
    if not kwargs.get("mm_encoder_outputs") and not session.family.incoming(kwargs):
        return kwargs
    given = kwargs.get("input_ids")
    given = kwargs.get("inputs_embeds") if given is None else given
    if given is None or draft >= given.shape[1]:
        return kwargs
    end = given.shape[1] - draft
    if _cuts_an_image(session, kwargs, end):
        return kwargs  # logits of more than the answer were asked for
    output = base(**_prompt(kwargs, end, draft))
    session.local.prompt_states = output.last_hidden_state
    return _behind(session, kwargs, end)


def refuse_a_second_reading(kwargs: Kwargs) -> None:
    """Assisted decoding of a later turn comes with the whole conversation, as if nothing were cached.

    Raises:
        InputError: the positions of the new tokens begin at 0 although others are cached.
    """
    cache, given, positions = kwargs.get(CACHE), kwargs.get("input_ids"), kwargs.get("position_ids")
    if not isinstance(cache, FoveatedCache) or given is None or not isinstance(positions, Tensor):
        return
    if given.shape[1] > max(cache.get_seq_length(), 1) and cache.get_seq_length() and not int(positions[..., 0].max()):
        raise InputError(
            "Assisted decoding cannot go on with a cached conversation: transformers reads the whole of it again. "
            "Leave assistant_model and prompt_lookup_num_tokens out from the second turn on."
        )


def _cuts_an_image(session: Session, kwargs: Kwargs, end: int) -> bool:
    """Whether the images' tokens go on behind `end`. A draft may hold placeholders too, as tokens like any others."""
    ids, call = kwargs.get("input_ids"), read_call(session.family, kwargs)[0]
    if not isinstance(ids, Tensor):
        return False
    before = sum(int(mask[:, :end].sum()) for mask in call.visual.values())
    given = sum(sum(sizes[i] for i in call.fresh.get(name, ())) for name, sizes in call.sizes.items())
    return 0 < before < given


def _prompt(kwargs: Kwargs, end: int, draft: int) -> Kwargs:
    own = dict(kwargs)
    for name in ("input_ids", "inputs_embeds"):
        if isinstance(own.get(name), Tensor):
            own[name] = own[name][:, :end]
    for name in ("attention_mask", "position_ids", "mm_token_type_ids", "token_type_ids"):
        if isinstance(own.get(name), Tensor):
            own[name] = own[name][..., : own[name].shape[-1] - draft]
    return own


def _behind(session: Session, kwargs: Kwargs, end: int) -> Kwargs:
    own = session.family.without_images(kwargs)
    for name in ("input_ids", "inputs_embeds"):
        if isinstance(own.get(name), Tensor):
            own[name] = own[name][:, end:]
    if isinstance(own.get("position_ids"), Tensor):
        own["position_ids"] = own["position_ids"][..., end:]
    for name in ("mm_token_type_ids", "token_type_ids"):
        own.pop(name, None)  # a draft is text
    return own
