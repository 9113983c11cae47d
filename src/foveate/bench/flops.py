r"""Floating-point operations of a vision-language model, counted from its geometry.

A matrix product of `[a, b]` and `[b, c]` is `2abc` operations (a multiply and an add each), as
`torch.utils.flop_counter` counts and as is usual since Kaplan et al. 2020 (arXiv 2001.08361, section 2.1).
Counted: patch embedding, every linear layer, both products of attention, projector, LM head. Not counted:
norms, activations, softmax, rotary embedding, and what a pruning method itself computes.
Attention is counted *densely* (all queries x all keys): kernels that skip the upper triangle do about half of it.

Per decoder layer with `n` tokens, width `w`, `h` heads and `g` key/value heads of size `d`, MLP width `m`:

    linear     2 n w d (h + 2 g)  +  2 n h d w  +  6 n w m      (query, key, value; output; gated MLP)
    attention  4 n k h d                                         (scores and values; k keys, k = n in a prefill)

Vision blocks are the same with `h = g`, `h d = width` and, without a gate, `4 n w m`; windowed blocks sum
`4 n^2 width` over their windows. Tests hold these to `FlopCounterMode` within 1 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.grid import Grid
from foveate.families.geometry import Geometry, Text, Vision
from foveate.trace.records import PrefillTrace, TowerStep


@dataclass(frozen=True)
class Flops:
    """Operations of one `generate` call, all rows together.

    Attributes:
        vision: tower and projector.
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


def vision_flops(vision: Vision, grids: Sequence[Grid], steps: Sequence[Sequence[TowerStep]] = ()) -> int:
    """Tower and projector for images (or clips) of these grids of *visual tokens*.

    Args:
        steps: per image, what was dropped in the tower. Patches are embedded before anything is dropped.
    """
    steps = steps if len(steps) == len(grids) else [()] * len(grids)
    return sum(_image(vision, grid, own) for grid, own in zip(grids, steps, strict=True))


def _image(v: Vision, grid: Grid, steps: Sequence[TowerStep]) -> int:
    starts = [0, *(step.block for step in steps), v.depth]
    alive = [torch.arange(grid.size), *(step.alive.cpu() for step in steps)]
    found = 2 * grid.size * v.merge**2 * v.patch * v.width
    for first, last, left in zip(starts, starts[1:], alive, strict=False):
        linear, whole, windows = _block(v, grid, left)
        found += sum(linear + (whole if block in v.full else windows) for block in range(first, last))
    return found + sum(2 * len(alive[-1]) * a * b for a, b in v.projector)


def _block(v: Vision, grid: Grid, alive: Tensor) -> tuple[int, int, int]:
    """Operations of one block on the tokens alive: linear layers, attention over whole frames, attention in windows."""
    patches = v.merge**2
    tokens = len(alive) * patches + v.extra * grid.t
    linear = 8 * tokens * v.width**2 + (6 if v.gated else 4) * tokens * v.width * v.mlp
    frames = torch.bincount(alive // (grid.h * grid.w), minlength=grid.t) * patches + v.extra
    windows = torch.bincount(grid.windows(v.window)[alive]) * patches if v.window else frames
    whole, windowed = (4 * v.width * int(counts.square().sum()) for counts in (frames, windows))
    return linear, whole, windowed


def linear_flops(text: Text) -> int:
    """The linear layers of one decoder layer, for one token."""
    t = text
    return 2 * t.width * t.head * (t.heads + 2 * t.kv_heads) + 2 * t.heads * t.head * t.width + 6 * t.width * t.mlp


def attention_flops(text: Text, queries: int, keys: int) -> int:
    """The two products of one layer's attention (dense)."""
    return 4 * queries * keys * text.heads * text.head


def head_flops(text: Text) -> int:
    """LM head for one token."""
    return 2 * text.width * text.vocabulary


def decode_flops(text: Text, rows: int, held: int, steps: int) -> int:
    """`steps` decoding steps of `rows` rows; `held` is the sum of cached tokens over layers and rows."""
    seen = steps * held + rows * text.layers * steps * (steps + 1) // 2
    return rows * steps * (text.layers * linear_flops(text) + head_flops(text)) + attention_flops(text, 1, seen)


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


def count(geometry: Geometry, trace: PrefillTrace, new_tokens: int) -> Flops:
    """Operations of a `generate` call whose prefill left this trace.

    Args:
        new_tokens: tokens generated per row; the first comes out of the prefill.
    """
    text = geometry.text
    tokens = [n for row in range(trace.rows) for n in tokens_per_layer(trace, row)]
    prefill = sum(n * linear_flops(text) + attention_flops(text, n, n) for n in tokens)
    held = sum(tokens)
    if trace.kv_bytes_unpruned:  # the cache itself knows best: some methods shorten earlier layers too
        unpruned = trace.rows * trace.layers * (trace.past + trace.length)
        held = round(unpruned * trace.kv_bytes / trace.kv_bytes_unpruned)
    grids = [grid for group in trace.groups for grid in group.grids]
    steps = [own for group in trace.groups for own in group.tower]
    return Flops(
        vision=vision_flops(geometry.vision, grids, steps),
        prefill=prefill,
        head=trace.rows * head_flops(text),
        decode=decode_flops(text, trace.rows, held, max(new_tokens - 1, 0)),
    )
