"""The training-time forward passes: equal to the stock models', batched and blocked for speed.

Two things the stock modules cannot do: encode a batch of equally large images without a loop over attention
windows, and answer K questions about one image in a single pass (each sees the shared prefix and itself).
Attention is written out because on CPU at these sizes it is two to five times faster than SDPA with its
backward pass. `tests/zoo/test_forward.py` compares both with stock transformers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MASKED = -1e4
PATCH = 14  # px
WINDOW = 8  # patches: 112 px, in both directions


def rms_norm(x: Tensor, norm: Any) -> Tensor:
    """RMSNorm in the activations' own precision."""
    return F.rms_norm(x, (x.shape[-1],), norm.weight.to(x.dtype), 1e-6)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the half-split layout of Llama and Qwen."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def swiglu(mlp: Any, x: Tensor) -> Tensor:
    """The gated MLP that tower and language model share."""
    return mlp.down_proj(F.silu(mlp.gate_proj(x)) * mlp.up_proj(x))


# ------------------------------------------------------------------ the Qwen2.5-VL tower


def to_windows(pixels: Tensor) -> Tensor:
    """Pixels `[B, H, W, C]` (H, W multiples of 112) -> patches `[B, P, C * 14**2]` in window order."""
    b, height, width, channels = pixels.shape
    rows, columns = height // PATCH, width // PATCH
    x = pixels.reshape(b, rows // WINDOW, 4, 2, PATCH, columns // WINDOW, 4, 2, PATCH, channels)
    return x.permute(0, 1, 5, 2, 6, 3, 7, 9, 4, 8).reshape(b, rows * columns, channels * PATCH * PATCH)


@lru_cache(maxsize=32)
def _tower_rope(rows: int, columns: int, head_dim: int) -> tuple[Tensor, Tensor]:
    def order(ids: Tensor) -> Tensor:
        windows = ids.reshape(rows // WINDOW, 4, 2, columns // WINDOW, 4, 2)
        return windows.permute(0, 3, 1, 4, 2, 5).reshape(-1, 1)

    y = order(torch.arange(rows)[:, None].expand(rows, columns))
    x = order(torch.arange(columns)[None].expand(rows, columns))
    inverse = 1.0 / (10000.0 ** (torch.arange(0, head_dim // 2, 2).float() / (head_dim // 2)))
    angles = torch.cat([y * inverse, x * inverse], -1).repeat(1, 2)
    return angles.cos(), angles.sin()


@dataclass
class Inside:
    """What happens in Qwen2.5-VL's tower, per patch and in window order.

    Attributes:
        states: what enters each block and what leaves the last, `[B, rows * columns, width]`.
        attention: each block's attention within its groups, `[B * groups, heads, group, group]`.
    """

    states: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)


def encode(tower: Any, pixels: Tensor) -> tuple[Tensor, Inside]:
    """Qwen2.5-VL's tower on pixels of `rows x columns` patches each: `[B, H, W, 3]`, or two frames of a video in each
    row of the batch, `[B, H, W, 3 * 2]`, colours outermost.

    Returns the merged features `[B, rows / 2, columns / 2, D]` in raster order, and what happened inside.
    """
    config = tower.config
    rows, columns = pixels.shape[1] // PATCH, pixels.shape[2] // PATCH
    patches = to_windows(pixels)
    b, count, _ = patches.shape
    head_dim = config.hidden_size // config.num_heads
    kernel = tower.patch_embed.proj.weight
    kernel = kernel.flatten(1) if pixels.shape[-1] == 6 else kernel.sum(2).flatten(1)  # an image is two equal frames
    x = F.linear(patches, kernel)
    cos, sin = (t.to(x.device, x.dtype)[None, :, None] for t in _tower_rope(rows, columns, head_dim))
    inside = Inside(states=[x])
    for i, block in enumerate(tower.blocks):
        group = count if i in config.fullatt_block_indexes else WINDOW * WINDOW
        x, attention = _tower_block(block, x, cos, sin, group)
        inside.states.append(x)
        inside.attention.append(attention)
    x = tower.merger.mlp(rms_norm(x, tower.merger.ln_q).reshape(b, count // 4, -1))
    x = x.view(b, rows // WINDOW, columns // WINDOW, 4, 4, -1).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(b, rows // 2, columns // 2, -1), inside


@lru_cache(maxsize=32)
def raster_order(rows: int, columns: int) -> Tensor:
    """Where in window order each patch of a `rows x columns` grid stands, `[rows * columns]`."""
    windows = torch.arange(rows * columns).view(rows // WINDOW, columns // WINDOW, 4, 4, 2, 2)
    return windows.permute(0, 2, 4, 1, 3, 5).flatten()


def _tower_block(block: Any, x: Tensor, cos: Tensor, sin: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """One block and its attention; tokens attend within consecutive groups of `group`."""
    b, count, width = x.shape
    heads = block.attn.num_heads
    qkv = block.attn.qkv(rms_norm(x, block.norm1)).view(b, count, 3, heads, width // heads)
    q, k, v = qkv.unbind(2)
    q, k = rotate(q, cos, sin) * (width // heads) ** -0.5, rotate(k, cos, sin)
    q, k, v = (t.reshape(-1, group, heads, width // heads).transpose(1, 2) for t in (q, k, v))
    attention = torch.matmul(q, k.transpose(-1, -2)).softmax(-1)
    mixed = torch.matmul(attention, v)
    x = x + block.attn.proj(mixed.transpose(1, 2).reshape(b, count, width))
    return x + swiglu(block.mlp, rms_norm(x, block.norm2)), attention


# ------------------------------------------------------------------ the language model


def text_rope(rotary: Any, positions: Tensor) -> tuple[Tensor, Tensor]:
    """`positions` `[3, B, L]` (M-RoPE) or `[B, L]` -> cos, sin `[B, 1, L, head_dim]`."""
    angles = positions[..., None].float() * rotary.inv_freq
    if positions.ndim == 3:
        sections = angles.split(list(rotary.mrope_section), -1)
        angles = torch.cat([section[i % 3] for i, section in enumerate(sections)], -1)
    angles = torch.cat([angles, angles], -1)[:, None]
    return angles.cos(), angles.sin()


def read(
    text: Any,
    x: Tensor,
    positions: Tensor,
    prefix: int,
    blocks: int,
    probe_layer: int = -1,
    hidden: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """A causal prefix followed by K independent blocks, each seeing the prefix and itself.

    Args:
        text: stock Qwen2.5-VL or Llama text model.
        x: embeddings `[B, prefix + K * Lq, C]`.
        positions: `[3, B, L]` or `[B, L]`.
        prefix: length of the shared prefix.
        blocks: K.
        probe_layer: the layer whose attention to the prefix is returned.
        hidden: tokens of the prefix, bool `[prefix]`, and in which layers they are hidden from which blocks, bool
            `[layers, B, K]`.

    Returns:
        Normed hidden states `[B, L, C]`; attention `[B, H, K, Lq, prefix]` of the probe layer or `None`.
    """
    cos, sin = (t.to(x.dtype) for t in text_rope(text.rotary_emb, positions))
    length = (x.shape[1] - prefix) // blocks
    causal = [torch.full((n, n), MASKED, dtype=x.dtype, device=x.device).triu(1) for n in (prefix, length)]
    probe = None
    for i, layer in enumerate(text.layers):
        unseen = hidden[1][i, :, None, :, None, None] & hidden[0] if hidden else None
        x, seen = _text_layer(layer, text.config, x, (cos, sin), causal, (prefix, blocks), unseen)
        probe = seen if i == probe_layer else probe
    return rms_norm(x, text.norm), probe


def _text_layer(
    layer: Any,
    config: Any,
    x: Tensor,
    rope: tuple[Tensor, Tensor],
    causal: list[Tensor],
    shape: tuple[int, int],
    unseen: Tensor | None,
) -> tuple[Tensor, Tensor]:
    b, length, _ = x.shape
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    head_dim = layer.self_attn.head_dim
    attention, y = layer.self_attn, rms_norm(x, layer.input_layernorm)
    q, k, v = (
        project(y).view(b, length, -1, head_dim).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    q, k = rotate(q, *rope) / math.sqrt(head_dim), rotate(k, *rope)
    k, v = (t.repeat_interleave(heads // groups, dim=1) for t in (k, v))
    mixed, seen = _blocked_attention(q, k, v, causal, *shape, unseen)
    x = x + attention.o_proj(mixed.transpose(1, 2).reshape(b, length, -1))
    return x + swiglu(layer.mlp, rms_norm(x, layer.post_attention_layernorm)), seen


def _blocked_attention(
    q: Tensor, k: Tensor, v: Tensor, causal: list[Tensor], prefix: int, blocks: int, unseen: Tensor | None
) -> tuple[Tensor, Tensor]:
    """q, k, v `[B, H, prefix + K * Lq, d]` -> mixed values of that shape, block attention to the prefix.

    Blocks do not see the tokens `unseen` `[B, 1, K, 1, prefix]`.
    """
    b, heads, length, dim = q.shape
    kp, vp = k[:, :, :prefix], v[:, :, :prefix]
    scores = torch.matmul(q[:, :, :prefix], kp.transpose(-1, -2)) + causal[0]
    out = torch.matmul(scores.softmax(-1), vp)
    each = (b, heads, blocks, (length - prefix) // blocks)
    qb, kb, vb = (t[:, :, prefix:].reshape(*each, dim) for t in (q, k, v))
    to_prefix = torch.matmul(q[:, :, prefix:], kp.transpose(-1, -2)).view(*each, prefix)
    if unseen is not None:
        to_prefix = to_prefix + unseen.to(to_prefix.dtype) * MASKED
    to_block = torch.matmul(qb, kb.transpose(-1, -2)) + causal[1]
    weights = torch.cat([to_prefix, to_block], -1).softmax(-1)
    seen = weights[..., :prefix]
    from_prefix = torch.matmul(seen.reshape(b, heads, -1, prefix), vp)
    from_block = torch.matmul(weights[..., prefix:], vb).reshape(b, heads, -1, dim)
    return torch.cat([out, from_prefix + from_block], 2), seen
