"""Assisted decoding: its first pass holds the prompt *and* a draft of the answer, which the choice must not see."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foveate.engine.session import Session

Kwargs = dict[str, Any]


def read_prompt_first(session: Session, base: nn.Module, kwargs: Kwargs) -> Kwargs:
    """Read the prompt on its own, as an ordinary prefill; what is left of the call is the draft behind it.

    Its hidden states wait in `session.local.prompt_states` for those of the draft. Without a cache, images or a draft
    nothing happens.
    """
    local, cache = session.local, kwargs.get("past_key_values")
    if not kwargs.get("mm_encoder_outputs") and not session.family.incoming(kwargs):
        return kwargs
    given = kwargs.get("input_ids")
    given = kwargs.get("inputs_embeds") if given is None else given
    if not local.draft or cache is None or given is None or local.draft >= given.shape[1]:
        return kwargs
    end, draft = given.shape[1] - local.draft, local.draft
    local.draft = 0  # the call below is an ordinary one
    output = base(**_prompt(kwargs, end, draft))
    local.prompt_states = output.last_hidden_state
    return _behind(session, kwargs, end)


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
