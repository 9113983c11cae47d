"""Queries and keys where attention uses them, on any attention backend, without patching anything global.

An attention function is registered with transformers under a name of ours and chosen on the attention module's own copy
of its configuration. It tells a listener what it was given and calls the function that the model had before. Masks are
made from the language model's configuration, which stays as it is.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from foveate.errors import UnsupportedModelError

EAGER = "eager_attention_forward"
"""What stock code calls its own attention function, or what such names end with."""

_NONE = (lambda: None).__code__

PREFIX = "foveate_heard_"
"""Our names are this and the model's own: stock code looks for `flash` in them."""
LISTENER = "foveate_listener"
"""Keyword argument by which one call of a layer brings a listener of its own, where somebody listens to the module."""
KEY_BIAS = "foveate_key_bias"
"""Keyword argument by which one call of a layer brings `[B, m]` to be added to the logits of its keys."""
WIDENED = 8


@dataclass(frozen=True)
class AttentionCall:
    """What one call of an attention function was given.

    Attributes:
        q: `[B, H, n, d]` queries after rotary embedding.
        k: `[B, H_kv, m, d]` keys after rotary embedding, cached ones included, heads not repeated.
        scaling: factor of the logits.
        bounds: `[segments + 1]` borders of packed segments (FlashAttention in vision towers), None if there are none.
        mask: `[B | 1, 1 | H, n, m]` bool or additive, None if the backend was given none of that shape.
    """

    q: Tensor
    k: Tensor
    scaling: float
    bounds: Tensor | None = None
    mask: Tensor | None = None

    def allowed(self, row: int, queries: Tensor) -> Tensor:
        """`[Q, m]` bool: what some queries may see, by the mask."""
        assert self.mask is not None
        own = self.mask[row if self.mask.shape[0] > 1 else 0, 0, queries, : self.k.shape[2]]
        return own if own.dtype == torch.bool else own > torch.finfo(own.dtype).min / 2


Listener = Callable[[AttentionCall], None]


class Heard:
    """A module's configuration for as long as somebody listens; copies and pickles of it are the original."""

    foveate_original: Any
    foveate_listeners: tuple[Listener, ...]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.foveate_original, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return copy.copy, (self.foveate_original,)


class Listening:
    """Handle of one attention module that is listened to; several may listen to the same."""

    def __init__(self, module: nn.Module, listener: Listener) -> None:
        self._module: Any = module
        self._listener = listener
        current: Any = getattr(module, "config", None)
        if not isinstance(current, Heard):
            module.config = current = _listened(module, current)
        current.__dict__["foveate_listeners"] += (listener,)

    def remove(self) -> None:
        """Give the module its own configuration back, if nobody else listens."""
        heard = self._module.config
        listeners = list(heard.foveate_listeners)
        listeners.remove(self._listener)
        heard.__dict__["foveate_listeners"] = tuple(listeners)
        if not listeners:
            self._module.config = heard.foveate_original


def _listened(module: nn.Module, original: Any) -> Any:
    """A copy of a module's configuration that chooses our attention function."""
    name = getattr(original, "_attn_implementation", None)
    if original is None or not isinstance(name, str):
        raise UnsupportedModelError(
            f"{type(module).__name__} chooses its attention function in a way that cannot be listened to, so its "
            "queries and keys cannot be read; use a method that does not need them."
        )
    ALL_ATTENTION_FUNCTIONS.register(PREFIX + name, _heard)
    heard = copy.copy(original)
    heard.__class__ = _heard_class(type(original))  # type: ignore[arg-type]
    heard.__dict__["_attn_implementation_internal"] = PREFIX + name
    heard.__dict__["foveate_original"], heard.__dict__["foveate_listeners"] = original, ()
    return heard


@cache
def _heard_class(kind: type) -> type:
    return type(kind.__name__, (Heard, kind), {"__module__": kind.__module__})


def _heard(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
    config = module.config
    scaling = kwargs.get("scaling")
    if scaling is None:
        scaling = getattr(module, "scaling", None) or query.shape[-1] ** -0.5
    mask = attention_mask if isinstance(attention_mask, Tensor) and attention_mask.dim() == 4 else None
    brought, bias = kwargs.pop(LISTENER, None), kwargs.pop(KEY_BIAS, None)
    call = AttentionCall(query, key, scaling, kwargs.get("cu_seq_lens_q"), mask)
    for listener in (*config.foveate_listeners, *(() if brought is None else (brought,))):
        listener(call)
    own = _function_of(module, config.foveate_original._attn_implementation)
    if bias is None:
        return own(module, query, key, value, attention_mask, **kwargs)
    wide = with_key_bias(query, key, value, bias, scaling)
    output, weights = own(module, *wide, attention_mask, **{**kwargs, "scaling": scaling})
    return output[..., : value.shape[-1]], weights


def with_key_bias(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values one step wider, so that the logits of every key are `bias` larger.

    The bias is one more feature of the keys, which all queries multiply by the same number: any attention function
    computes it, with its gradient, and no mask of queries times keys is ever made. The width grows by eight, since
    kernels like multiples of that; the output's last eight features are zero.

    Args:
        query, key, value: `[B, H | H_kv, n | m, d]`.
        bias: `[B, m]`, nowhere far below -1000: half precision must hold it divided by `scaling`.
    """
    width = key.shape[-1]
    one = query.new_zeros(WIDENED)
    one[0] = 1 / scaling
    query = torch.cat([query, one.expand(*query.shape[:-1], -1)], dim=-1)
    column = bias.to(key.dtype)[:, None, :, None].expand(-1, key.shape[1], -1, -1)
    key = torch.cat([key, F.pad(column, (0, WIDENED - 1))], dim=-1)
    return query, key, F.pad(value, (0, width + WIDENED - value.shape[-1]))


def _function_of(module: Any, name: str) -> Callable[..., Any]:
    if name != "eager":
        found: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[name]
        return found
    for kind in inspect.getmro(type(module)):  # a subclass may stand in another file than the function
        forward = kind.__dict__.get("forward")
        named = [name for name in getattr(forward, "__code__", _NONE).co_names if name.endswith(EAGER)]
        for name in (*named, EAGER):  # a file may have one for its tower and one for its language model
            eager = getattr(sys.modules[kind.__module__], name, None)
            if eager is not None:
                return eager
    raise UnsupportedModelError(f"{type(module).__name__} has no eager attention function; load the model with sdpa.")
