"""The VIP (visual importance predictor) of GlimpsePrune: one logit for every visual token.

Source: GlimpsePrune, https://github.com/HVision-NKU/GlimpsePrune (`AttnFuserV1`). A token's attention
features (one number per selected layer and head: how strongly the glimpse token looked at it) are lifted to
width f and refined by a few conditional attention layers, whose queries and keys also see the token's
features from inside the vision tower.

All tensors are in raster order. Images of different size are handled together: tokens of one image (or of one
attention window) form a *segment*, segments are padded to a rectangle, and attention stays inside them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from foveate.core.grid import Grid
from foveate.glimpse.geometry import frame_ids, image_ids, raster_positions


class Segments:
    """Packs tokens [N, ...] into rectangles [segments, longest, ...] and back.

    `ids` [N] names the segment of each token, in any order. Built on the CPU; one copy to the device.
    """

    def __init__(self, ids: Tensor, device: torch.device | str) -> None:
        ids = ids.cpu()
        _, ids, counts = torch.unique(ids, return_inverse=True, return_counts=True)
        self.shape = (len(counts), int(counts.max()))
        order = torch.argsort(ids, stable=True)
        within = torch.arange(len(ids)) - (counts.cumsum(0) - counts)[ids[order]]
        slot_of_token = torch.empty_like(ids)
        slot_of_token[order] = ids[order] * self.shape[1] + within
        token_of_slot = torch.zeros(self.shape[0] * self.shape[1], dtype=torch.long)
        token_of_slot[slot_of_token] = torch.arange(len(ids))
        ragged = int(counts.min()) != self.shape[1]
        self.in_order = not ragged and bool((token_of_slot[1:] > token_of_slot[:-1]).all())
        filled = torch.arange(self.shape[1]) < counts[:, None]
        self.slot_of_token = slot_of_token.to(device, non_blocking=True)
        self.token_of_slot = token_of_slot.to(device, non_blocking=True)
        self.mask = filled[:, None, None, :].to(device, non_blocking=True) if ragged else None

    def pack(self, x: Tensor) -> Tensor:
        """[N, ...] -> [segments, longest, ...]; free slots repeat token 0 and are masked as keys."""
        return (x if self.in_order else x[self.token_of_slot]).unflatten(0, self.shape)

    def unpack(self, x: Tensor) -> Tensor:
        """[segments, longest, ...] -> [N, ...]."""
        return x.flatten(0, 1) if self.in_order else x.flatten(0, 1)[self.slot_of_token]


def rotary_2d(positions: Tensor, dim: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosine and sine [N, dim] of the 2-D rotary embedding for (row, column) positions [N, 2].

    Half of the `dim // 2` angles belong to the row, half to the column.
    """
    frequencies = theta ** (-torch.arange(0, dim // 2, 2, device=positions.device).float() / (dim // 2))
    angles = (positions.float()[:, :, None] * frequencies).flatten(1)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of `x` [N, heads, dim], half-rotation style, computed in float32."""
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x.float() * cos[:, None] + turned * sin[:, None]).to(x.dtype)


class ConditionalAttention(nn.Module):
    """Self-attention with queries and keys from `[u ; condition]`, values from `u` alone."""

    def __init__(self, width: int, cond_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width + cond_width, width + cond_width, bias=False)
        self.k_proj = nn.Linear(width + cond_width, width + cond_width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, u: Tensor, cond: Tensor, rotary: tuple[Tensor, Tensor], segments: Segments) -> Tensor:
        """u [N, f], cond [N, c] -> [N, f]."""
        joint = torch.cat([u, cond], dim=-1)
        both = torch.cat([self.q_proj(joint), self.k_proj(joint)], dim=-1)
        q, k = _rotate(both.unflatten(-1, (2 * self.heads, -1)), *rotary).chunk(2, dim=1)
        v = self.v_proj(u).unflatten(-1, (self.heads, -1))
        q, k, v = (segments.pack(x).transpose(1, 2) for x in (q, k, v))
        # Values as wide as keys: fused kernels want it, and the others materialise the N x N matrix.
        padded = F.pad(v, (0, q.shape[-1] - v.shape[-1]))
        mixed = F.scaled_dot_product_attention(q, k, padded, attn_mask=segments.mask)[..., : v.shape[-1]]
        return self.o_proj(segments.unpack(mixed.transpose(1, 2)).flatten(1))


class GatedMLP(nn.Module):
    """`down(act(gate(x)) * up(x))`, width f -> 2f -> f, with biases."""

    def __init__(self, width: int, act: str) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, 2 * width)
        self.up_proj = nn.Linear(width, 2 * width)
        self.down_proj = nn.Linear(2 * width, width)
        self.act = ACT2FN[act]

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class VIPLayer(nn.Module):
    """Pre-norm conditional attention, then a gated MLP."""

    def __init__(self, width: int, cond_width: int, heads: int, act: str) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(width, eps=1e-6)
        self.attn = ConditionalAttention(width, cond_width, heads)
        self.norm2 = nn.RMSNorm(width, eps=1e-6)
        self.mlp = GatedMLP(width, act)

    def forward(self, h: Tensor, cond: Tensor, rotary: tuple[Tensor, Tensor], segments: Segments) -> Tensor:
        h = h + self.attn(self.norm1(h), cond, rotary, segments)
        return h + self.mlp(self.norm2(h))


class VIP(nn.Module):
    """Logits of importance for visual tokens.

    Args:
        attn_features: numbers per token that describe the glimpse attention (selected layers x heads).
        cond_features: width of the vision tower's hidden states.
        layers: conditional layers, one per tapped vision block.
        width: f, the width of the residual stream.
        cond_width: c, the width of a condition after projection; `f + c` and `f` must divide by `heads`,
            and the head dimension `(f + c) / heads` by 4 (2-D rotary embedding).
        deep_supervision: give every layer an output head, not only the last.
        raw_attention: also return the normalised glimpse attention as row 0 (used as an auxiliary output).
        log_probabilities: the attention features are log-probabilities, not logits (concerns row 0 only).

    Parameter names inside follow the official checkpoints.
    """

    def __init__(
        self,
        attn_features: int,
        cond_features: int,
        *,
        layers: int = 4,
        width: int = 256,
        cond_width: int = 512,
        heads: int = 4,
        act: str = "silu",
        deep_supervision: bool = False,
        raw_attention: bool = False,
        log_probabilities: bool = False,
    ) -> None:
        super().__init__()
        self.raw_attention, self.log_probabilities = raw_attention, log_probabilities
        self.head_dim = (width + cond_width) // heads
        self.attn_in_proj = nn.Linear(attn_features, width)
        self.cond_in_projs = nn.ModuleList(nn.Linear(cond_features, cond_width) for _ in range(layers))
        self.layers = nn.ModuleList(VIPLayer(width, cond_width, heads, act) for _ in range(layers))
        headed = range(layers) if deep_supervision else [layers - 1]
        self.attn_out_projs = nn.ModuleDict({str(i): nn.Linear(width, 1) for i in headed})

    def forward(
        self,
        attn: Tensor,
        conds: Sequence[Tensor],
        grids: Sequence[Grid],
        window_ids: Tensor | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        """Logits [rows, N]; the last row decides, further rows exist for supervision in training.

        Args:
            attn: [N, attn_features], layer-major (all heads of the first selected layer first).
            conds: one [N, cond_features] per layer; the first layer sees the deepest vision block.
            grids: merged grids of the images, `sum(t * h * w) == N`.
            window_ids: [sum(t * h * w)] attention windows (`geometry.window_ids`); None: attention within a frame.
            index: [N] which of the grids' tokens these are, where others are gone already; None: all of them.
        """
        ids = frame_ids(grids) if window_ids is None else window_ids
        positions, images = raster_positions(grids), image_ids(grids)
        if index is not None:
            index = index.cpu()
            ids, positions, images = ids[index], positions[index], images[index]
        segments = Segments(ids, attn.device)
        positions = positions.to(attn.device, non_blocking=True)
        rotary = rotary_2d(positions, self.head_dim)
        h = self.attn_in_proj(attn)
        rows = [self._raw_row(attn, images)] if self.raw_attention else []
        for i, (layer, project, cond) in enumerate(zip(self.layers, self.cond_in_projs, conds, strict=True)):
            h = layer(h, project(cond), rotary, segments)
            last = i == len(self.layers) - 1
            if last or (self.training and str(i) in self.attn_out_projs):
                rows.append(self.attn_out_projs[str(i)](h).squeeze(-1))
        return torch.stack(rows)

    def _raw_row(self, attn: Tensor, image_of_token: Tensor) -> Tensor:
        """Glimpse attention per image, averaged over features and scaled to [0, 1]: [N]."""
        images = Segments(image_of_token, attn.device)
        mean = images.pack(attn.float().mean(-1))
        hidden = torch.zeros_like(mean, dtype=torch.bool)
        if images.mask is not None:
            hidden = ~images.mask[:, 0, 0]
        weights = mean.exp() if self.log_probabilities else mean.masked_fill(hidden, -torch.inf).softmax(-1)
        low = weights.masked_fill(hidden, torch.inf).amin(-1, keepdim=True)
        high = weights.masked_fill(hidden, -torch.inf).amax(-1, keepdim=True)
        return images.unpack((weights - low) / (high - low + 1e-6)).to(attn.dtype)
