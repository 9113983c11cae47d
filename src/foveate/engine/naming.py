"""What transformers calls the KV cache among a call's arguments: `past_key_values`, and `cache` from 5.24 on."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers.modeling_outputs import BaseModelOutputWithPast

OLD = "past_key_values"
CACHE = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else OLD
"""The name that this version of transformers passes on from module to module."""


def with_cache_named(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments with the cache under `CACHE`: callers may still use the older name, which stock code translates
    only inside the call."""
    if CACHE == OLD or OLD not in kwargs:
        return kwargs
    kwargs = dict(kwargs)
    cache = kwargs.pop(OLD)
    return kwargs if CACHE in kwargs else kwargs | {CACHE: cache}
