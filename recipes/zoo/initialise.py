"""Starts that make a tiny model learn to read within minutes. What each buys stands in `zoo/README.md`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

_MIX_LUMA = (0.58, 0.58, 0.58)
_MIX_CHROMA = ((0.7, -0.7, 0.0), (0.4, 0.4, -0.8))
_OFFSETS = [
    [(0, 1), (0, -1), (1, 0), (-1, 0)],
    [(1, 1), (1, -1), (-1, 1), (-1, -1)],
    [(0, 2), (0, -2), (2, 0), (-2, 0)],
]


def dct_patches(patches: Tensor, width: int, side: int, luma: int = 84, chroma: int = 12) -> Tensor:
    """A patch embedding that is a whitened low-frequency DCT of luma and chroma.

    With a random start the mean of a patch swamps its strokes, and glyphs are not learned.

    Args:
        patches: sample patches `[N, 3 * side**2]`, channel-major, that the whitening is measured on.
        width: rows of the result.
        side: patch side in pixels.

    Returns:
        `[width, 3 * side**2]`.
    """
    k = torch.arange(side).float()
    basis = torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / (2 * side))
    basis = basis / basis.norm(dim=1, keepdim=True)
    order = sorted(((i, j) for i in range(side) for j in range(side)), key=lambda f: (f[0] ** 2 + f[1] ** 2, f))

    def planes(n: int, mix: tuple[float, ...]) -> Tensor:
        waves = [torch.einsum("c,y,x->cyx", torch.tensor(mix), basis[i], basis[j]) for i, j in order[:n]]
        return torch.stack(waves).flatten(1)

    kernel = torch.cat([planes(luma, _MIX_LUMA)] + [planes(chroma, mix) for mix in _MIX_CHROMA])[:width]
    spread = (patches @ kernel.T).std(0)
    kernel = kernel / (spread + 0.02 * spread.max())[:, None]
    return torch.cat([kernel, torch.randn(width - len(kernel), kernel.shape[1]) * 0.01])


def look_at_neighbours(tower: Any, strength: float = 4.0) -> None:
    """Query and key biases that make every head start as a soft look at one fixed neighbour.

    RoPE turns constant queries and keys into a kernel of the relative position; a phase moves its peak.
    """
    heads, width = tower.config.num_heads, tower.config.hidden_size
    dim = width // heads
    frequencies = 1.0 / (10000.0 ** (torch.arange(0, dim // 2, 2).float() / (dim // 2)))
    amplitude = torch.zeros(dim // 4)
    amplitude[:3] = math.sqrt(strength * math.sqrt(dim))
    for i, block in enumerate(tower.blocks):
        bias = block.attn.qkv.bias.data.view(3, heads, dim).zero_()
        block.attn.qkv.weight.data[: 2 * width].mul_(0.5)
        for head in range(heads):
            dy, dx = _OFFSETS[i % 3][head % 4]
            phase, both = torch.cat([frequencies * dy, frequencies * dx]), amplitude.repeat(2)
            bias[0, head, : dim // 2] = both
            bias[1, head, : dim // 2] = both * phase.cos()
            bias[1, head, dim // 2 :] = -both * phase.sin()


def shrink_residuals(linears: list[nn.Linear], depth: int) -> None:
    """Depth-scaled residual outputs: each block starts by adding little."""
    for linear in linears:
        linear.weight.data.mul_(1 / math.sqrt(2 * depth))


def match_and_copy(text: Any, band: tuple[float, ...]) -> None:
    """A mimetic start: attention begins by matching equal content (q = k) and copying it (o = v transposed).

    Args:
        text: text model with grouped-query attention.
        band: scale of each rotary pair `[head_dim / 2]`; slow pairs carry content over a distance.
    """
    config = text.config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    scale = torch.tensor(band).repeat(2)[:, None]
    for layer in text.layers:
        attention = layer.self_attn
        dim = attention.head_dim
        for group in range(groups):
            own = slice(group * dim, (group + 1) * dim)
            key, value = (nn.init.orthogonal_(torch.empty(dim, config.hidden_size)) for _ in range(2))
            attention.k_proj.weight.data[own] += key * scale
            attention.v_proj.weight.data[own] += value
            for head in range(group * heads // groups, (group + 1) * heads // groups):
                rows = slice(head * dim, (head + 1) * dim)
                attention.q_proj.weight.data[rows] += key * scale
                attention.o_proj.weight.data[:, rows] += 0.3 * value.T


def name_classes(embedding: Tensor, directions: dict[int, Tensor], rms: float = 0.2) -> None:
    """Sets the embeddings of words to the directions in which the tower shows what they name.

    Tied to the output, a copied visual feature then already votes for the right word.

    Args:
        embedding: `[V, C]`, changed in place.
        directions: token id -> `[C]`.
    """
    for token, direction in directions.items():
        unit = direction / direction.pow(2).mean().sqrt().clamp_min(1e-6)
        embedding[token] = rms * unit + 0.02 * torch.randn_like(unit)
