r"""Floating-point operations of a vision-language model.

A matrix product of `[a, b]` and `[b, c]` is `2abc` operations (a multiply and an add each), as
`torch.utils.flop_counter` counts and as is usual since Kaplan et al. 2020 (arXiv 2001.08361, section 2.1).
Counted: every linear layer and convolution, both products of attention, LM head. Not counted: norms, activations,
softmax, rotary embedding, and what a pruning method itself computes.
Attention is counted *densely* (all queries x all keys): kernels that skip the upper triangle do about half of it.

The language model's operations follow from its sizes and from what was alive where. Per decoder layer with `n` tokens,
width `w`, `h` heads and `g` key/value heads of size `d`, MLP width `m`:

    linear     2 n w d (h + 2 g)  +  2 n h d w  +  6 n w m      (query, key, value; output; gated MLP)
    attention  4 n k h d                                         (scores and values; k keys, k = n in a prefill)

With experts, those that a token visits count. What comes before the language model has as many forms as there are
families and is the same for every method: torch's counter counts it while it runs once. Tests hold the sum to
`FlopCounterMode` within 1 % on every type of the families' test table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from foveate.engine.attach import prune
from foveate.engine.replay import tower_replay
from foveate.families.base import Family
from foveate.families.geometry import CHUNK, Geometry, Layer
from foveate.trace.records import PrefillTrace


def _fused(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """The fused attention of CPUs, which torch's counter does not know."""
    return int(sdpa_flop_count(query, key, value))


FUSED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _fused}
COUNTED = ("eager", "sdpa")
"""Attention backends that torch's counter sees through."""


@dataclass(frozen=True)
class Flops:
    """Operations of one `generate` call, all rows together.

    Attributes:
        vision: everything before the first decoder layer: tower, projector.
        prefill: decoder layers over the prompt.
        head: LM head for the first token.
        decode: everything for the tokens after the first.
    """

    vision: int
    prefill: int
    head: int
    decode: int

    @property
    def first_token(self) -> int:
        """Until the first token stands."""
        return self.vision + self.prefill + self.head

    @property
    def total(self) -> int:
        return self.first_token + self.decode


class _FirstLayer(Exception):  # noqa: N818 - control flow, not an error
    """Ends a forward pass at the first decoder layer."""


def vision_flops(family: Family, inputs: Mapping[str, Any], trace: PrefillTrace | None = None) -> int:
    """What a prompt costs before the first decoder layer, counted while it runs.

    Args:
        inputs: arguments of `generate`.
        trace: of a prefill whose vision tower was pruned: what it dropped there is dropped again.
    """

    def stop(layer: nn.Module, args: Any, kwargs: Any) -> NoReturn:
        raise _FirstLayer

    base: Any = family.parts.base
    counter = FlopCounterMode(display=False, custom_mapping=FUSED)
    handle = family.parts.layers[0].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.no_grad(), prune(base, None if trace is None else tower_replay(trace)), countable(base), counter:
            base(**inputs, use_cache=False)
    except _FirstLayer:
        return counter.get_total_flops()
    finally:
        handle.remove()
    raise AssertionError("the model never called its language model")


@contextmanager
def countable(base: Any) -> Iterator[None]:
    """With an attention backend whose products torch's counter sees, and nothing that asks for gradients, which its
    tracker of modules would follow."""
    own = base.config._attn_implementation
    learned = [parameter for parameter in base.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    if own not in COUNTED:
        base.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
        if own not in COUNTED:
            base.set_attn_implementation(own)


def decode_flops(geometry: Geometry, rows: int, held: float, steps: int) -> int:
    """`steps` decoding steps of `rows` rows.

    Args:
        held: tokens of a row that the cache holds, on average over layers and rows.
    """
    layers = geometry.layers
    linear = sum(layer.linear for layer in layers) + geometry.before + geometry.behind + geometry.head
    found = rows * steps * held  # keys that all steps find in a layer's cache
    new = rows * steps * (steps + 1) / 2  # and those of the steps themselves
    pairs = sum(layer.pair for layer in layers) * (found + new)
    expanded = sum(layer.expand for layer in layers) * (found + new - rows * steps)
    return rows * steps * linear + round(pairs + expanded)


def tokens_per_layer(trace: PrefillTrace, row: int) -> list[int]:
    """Tokens of a row (text and visual, without padding) that each decoder layer reads."""
    groups = [group for group in trace.groups if group.row == row]
    own = trace.length - trace.padding[row]
    counts = []
    for layer in range(trace.layers):
        dropped = 0
        for group in groups:
            dropped += group.shown - len(group.alive_at(layer))
        counts.append(own - dropped)
    return counts


def count(geometry: Geometry, trace: PrefillTrace, new_tokens: int, vision: int) -> Flops:
    """Operations of a `generate` call whose prefill left this trace.

    Args:
        new_tokens: tokens generated per row; the first comes out of the prefill.
        vision: operations before the first decoder layer (`vision_flops`).
    """
    tokens = [tokens_per_layer(trace, row) for row in range(trace.rows)]
    pruned = any(group.steps for group in trace.groups)
    prefill = sum(
        _read(layer, 1 if layer.last_only and not pruned else n, n)
        for row in tokens
        for n, layer in zip(row, geometry.layers, strict=True)
    )
    last = sum(row[-1] for row in tokens)
    held = sum(map(sum, tokens)) / (trace.rows * trace.layers)
    if trace.kv_bytes_unpruned:  # the cache itself knows best: some methods shorten earlier layers too
        held = (trace.past + trace.length) * trace.kv_bytes / trace.kv_bytes_unpruned
    asked = last if geometry.head_reads_all else trace.rows
    return Flops(
        vision=vision,
        prefill=prefill + last * geometry.behind,
        head=asked * geometry.head,
        decode=decode_flops(geometry, trace.rows, held, max(new_tokens - 1, 0)),
    )


def _read(layer: Layer, queries: int, keys: int) -> int:
    """A layer over a prompt."""
    return queries * layer.linear + queries * keys * layer.pair + -(-queries // CHUNK) * layer.chunk
