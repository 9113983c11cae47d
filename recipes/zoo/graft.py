"""Starts a CLIP tower from a trained Qwen2.5-VL tower, as far as the two can say the same thing.

Patch embedding, values, output projections and the scales of the norms carry over. Queries and keys do not: those of
Qwen are turned by rotary angles after the projection, which CLIP's position embeddings cannot express, and grafted
without the turn they look harder, at the wrong patches, than a fresh start does. Gated MLPs do not carry over either.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.zoo import qwen
from recipes.zoo.forward import WINDOW

STEADY = 300.0
FREQUENCIES = torch.tensor([10000.0 ** (-k / 8) for k in range(3)])  # the teacher's fast rotary pairs, radians a patch
WAVES = 4 * len(FREQUENCIES)  # sine and cosine of each on both axes


def position_dims(side: int) -> int:
    """Dimensions that `place_positions` fills for a grid of `side x side` patches."""
    return 2 * math.ceil(side / WINDOW) + WAVES


def place_positions(tower: Any) -> None:
    """Where a patch lies, in the last dimensions of the position embeddings; zeros before them.

    One-hot, in which of the teacher's attention windows, by row and by column; then cosines and sines of both.
    """
    side = tower.config.image_size // tower.config.patch_size
    table = tower.embeddings.position_embedding.weight
    table.zero_()
    y, x = (t.flatten() for t in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    windows = torch.cat([F.one_hot(t // WINDOW, math.ceil(side / WINDOW)) for t in (y, x)], 1)
    angles = torch.cat([y[:, None] * FREQUENCIES, x[:, None] * FREQUENCIES], 1)
    table[1:, -position_dims(side) :] = torch.cat([windows, angles.cos(), angles.sin()], 1)


@torch.no_grad()
def graft(tower: Any, teacher: Any) -> None:
    """Writes the teacher's tower into the first dimensions and heads of a CLIP tower with `place_positions`.

    Args:
        tower: CLIP's vision tower with heads of the teacher's size; changed in place.
        teacher: a trained `Qwen2_5_VLForConditionalGeneration` of the zoo.
    """
    source = teacher.model.visual
    width = source.config.hidden_size
    states = qwen.teach(teacher, qwen.sample_pixels(8, 224)).states
    tower.embeddings.patch_embedding.weight.zero_()[:width] = source.patch_embed.proj.weight.sum(2)
    _steady_norms(tower, width)
    places = position_dims(tower.config.image_size // tower.config.patch_size)
    for layer, block, state in zip(tower.encoder.layers, source.blocks, states[:-1], strict=False):
        spread, rms = _spread(state, tower.config.hidden_size), state.pow(2).mean().sqrt()
        layer.layer_norm1.weight[:width] = block.norm1.weight * spread / rms
        layer.layer_norm1.weight[-places:] = spread
        layer.layer_norm2.weight[:width] = block.norm2.weight * spread / rms
        _graft_values(layer.self_attn, block.attn, width)


def _steady_norms(tower: Any, width: int, embedded: float = 1000.0) -> None:
    """Two constants in every token keep what LayerNorm divides by nearly the same for all tokens.

    Qwen has no norm after its patch embedding, and its positions do not pass through norms at all. Here they do:
    without the constants flat patches would look three times as sharply as others, and the gradient of that
    explodes. No layer reads the constants, and the last layer that LLaVA reads takes them away.
    """
    pair, sign = [width, width + 1], torch.tensor([1.0, -1.0])
    tower.embeddings.position_embedding.weight[:, pair] = embedded * sign
    unit = (2 / tower.config.hidden_size) ** 0.5
    tower.pre_layrnorm.weight.fill_(embedded * unit)
    tower.pre_layrnorm.weight[pair] = STEADY * unit
    for layer in tower.encoder.layers:
        layer.layer_norm1.weight[pair] = layer.layer_norm2.weight[pair] = 0
    tower.encoder.layers[-2].mlp.fc2.bias[pair] -= STEADY * sign


def _spread(state: Tensor, width: int) -> float:
    """What CLIP's LayerNorm will divide by: the deviation over `width` dimensions."""
    total = state.pow(2).sum(-1).mean() + 2 * STEADY**2
    return float((total / width).sqrt())


def _graft_values(own: Any, source: Any, width: int) -> None:
    rows = slice(0, source.num_heads * own.head_dim)
    weight, bias = source.qkv.weight.view(3, width, width)[2], source.qkv.bias.view(3, width)[2]
    own.v_proj.weight[rows] = 0
    own.v_proj.weight[rows, :width], own.v_proj.bias[rows] = weight, bias
    own.out_proj.weight[:, rows] = 0
    own.out_proj.weight[:width, rows], own.out_proj.bias[:width] = source.proj.weight, source.proj.bias
