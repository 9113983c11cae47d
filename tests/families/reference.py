"""What pruned models are compared with: stock models that hold every token and mask the dropped ones, or, where a
masked token would still have been seen (recurrent layers), stock language models that are given the survivors alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import foveate
from foveate.families import adapt
from tests.families.tiny import TinyType
from tests.reference import Drop, gone, weights


def close(found: Tensor, wanted: Tensor) -> float:
    """Largest difference relative to the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def generate(model: Any, inputs: dict[str, Any], steps: int, **more: Any) -> tuple[Tensor, Tensor, Any]:
    """Greedy tokens `[B, steps]`, logits `[B, steps, V]` and the cache."""
    out = model.generate(
        **inputs, max_new_tokens=steps, do_sample=False, output_logits=True, return_dict_in_generate=True, **more
    )
    return out.sequences[:, -steps:], torch.stack(out.logits, 1), out.past_key_values


def longer(entry: TinyType, inputs: dict[str, Any], tokens: Tensor) -> dict[str, Any]:
    """The inputs with text behind them, and positions as `generate` counts them."""
    found = dict(inputs)
    found["input_ids"] = torch.cat([inputs["input_ids"], tokens], 1)
    found["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(tokens)], 1)
    if entry.token_types in inputs:
        text = int(entry.model_type == "paligemma")
        kinds = inputs[entry.token_types]
        found[entry.token_types] = torch.cat([kinds, torch.full_like(tokens, text)], 1)
    return found


def with_positions(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """M-RoPE models find their positions themselves; others are given those of the real tokens."""
    if any(hasattr(module, "get_rope_index") for module in (model, getattr(model, "model", model))):
        return inputs
    return {**inputs, "position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)}


@contextmanager
def masked(
    model: Any, inputs: dict[str, Any], trace: dict[str, Any], own: Callable[[int], Tensor] | None = None
) -> Iterator[None]:
    """Within the block no query of decoder layer l sees the visual tokens that are dropped there; `own(l)` `[B, n]` is
    added to the logits of the keys."""
    handles = []
    for number, layer in enumerate(adapt(model).parts.layers):
        dropped = gone(inputs, trace, lambda row, n=number: row["layers"][n]["positions"])
        names = list(inspect.signature(layer.forward).parameters)
        handles.append(layer.register_forward_pre_hook(_hiding(dropped, names, number, own), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hiding(dropped: Tensor, names: list[str], layer: int, own: Callable[[int], Tensor] | None) -> Any:
    def hook(module: Any, args: Any, kwargs: Any) -> Any:
        kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
        hidden = kwargs.pop(names[0])
        n = hidden.shape[-2]
        given, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        keys = n + (0 if cache is None else cache.get_seq_length(layer))
        hide = F.pad(dropped, (0, keys - dropped.shape[1]))[:, None, None]
        if given is None:
            given = torch.ones(n, keys, dtype=torch.bool).tril(keys - n)[None, None]
            if module_config(module)._attn_implementation == "eager":
                given = torch.zeros(1, 1, n, keys).masked_fill(~given, torch.finfo(torch.float32).min)
        if own is not None and given.dtype == torch.bool:
            given = torch.zeros(given.shape).masked_fill(~given, torch.finfo(torch.float32).min)
        if given.dtype == torch.bool:
            return (hidden,), {**kwargs, "attention_mask": given & ~hide}
        if own is not None:
            given = given + F.pad(own(layer), (0, keys - dropped.shape[1]))[:, None, None]
        return (hidden,), {**kwargs, "attention_mask": given.masked_fill(hide, torch.finfo(given.dtype).min)}

    return hook


def module_config(layer: Any) -> Any:
    """The configuration that the attention of a layer reads."""
    return next(module.config for module in layer.modules() if hasattr(module, "config"))


@torch.no_grad()
def masked_logits(
    model: Any,
    entry: TinyType,
    inputs: dict[str, Any],
    trace: dict[str, Any],
    tokens: Tensor,
    own: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """`[B, steps, V]` of every decoded token, each from a stock pass over everything before it."""
    found = []
    for step in range(tokens.shape[1]):
        with masked(model, inputs, trace, own):
            given = with_positions(model, longer(entry, inputs, tokens[:, :step]))
            found.append(model(**given, use_cache=False).logits[:, -1])
    return torch.stack(found, 1)


@torch.no_grad()
def logits_of_survivors(model: Any, inputs: dict[str, Any], trace: dict[str, Any]) -> Tensor:
    """`[B, V]` of the next token, by the stock language model on the tokens that a stage before layer 0 leaves."""
    family, seen = adapt(model), []
    text = family.parts.text
    handle = text.register_forward_pre_hook(lambda m, a, k: seen.append(k), with_kwargs=True)
    model(**with_positions(model, inputs), use_cache=False)
    handle.remove()
    dropped = gone(inputs, trace, lambda row: row["kept"])
    found = []
    for row in range(dropped.shape[0]):
        kept = (inputs["attention_mask"][row].bool() & ~dropped[row]).nonzero().squeeze(1)
        positions = seen[0]["position_ids"]
        own = positions[..., min(row, positions.shape[-2] - 1), :][..., None, kept]
        out = text(
            inputs_embeds=seen[0]["inputs_embeds"][row : row + 1, kept],
            position_ids=own,
            attention_mask=torch.ones(1, len(kept), dtype=torch.long),
            use_cache=False,
        )
        found.append(model.get_output_embeddings()(out.last_hidden_state[:, -1]))
    return torch.cat(found)


def rows_of(kind: str) -> Sequence[Sequence[Any]]:
    """A batch of two prompts of different length, one with two images."""
    return [[6, (kind, 2, 3), 5], [2, (kind, 3, 2), 4, (kind, 2, 2), 3]]


def check_dropping_is_masking(
    model: Any,
    entry: TinyType,
    inputs: dict[str, Any],
    layers: tuple[int, ...],
    steps: int,
    tolerance: float,
    proportional: bool = False,
) -> None:
    """Logits of a pruned answer are those of the stock model that masks what was dropped."""
    with foveate.prune(model, Drop(layers, 0.4, proportional=proportional)) as trace:
        tokens, logits, _ = generate(model, inputs, steps)
    seen = trace.to_dict()
    assert seen["alive_per_layer"][-1] < 0.8 * seen["visual_tokens"]
    own = weights(trace.prefills, inputs["input_ids"].shape) if proportional else None
    assert close(logits, masked_logits(model, entry, inputs, seen, tokens, own)) < tolerance
