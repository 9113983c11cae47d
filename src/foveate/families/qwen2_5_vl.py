"""Qwen2.5-VL: windowed vision transformer at native resolution, 2 x 2 patch merger, M-RoPE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.attention import received_attention, rotate
from foveate.core.grid import Grid
from foveate.core.method import Tap
from foveate.families.base import Family

SOURCES = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}


class Qwen25VL(Family):
    """`Qwen2_5_VLForConditionalGeneration`, images and videos.

    The tower works on patches in window order, `merge**2` neighbours in a row; values are averaged over a
    merge unit (attention: summed) and put back into raster order.
    """

    name = "qwen2_5_vl"
    model_types = ("qwen2_5_vl",)
    tower_path = "visual"
    blocks_path = "blocks"
    wants_token_types = True

    @property
    def token_ids(self) -> dict[str, int]:
        return {"image": self.config.image_token_id, "video": self.config.video_token_id}

    @property
    def _merge(self) -> int:
        return self.config.vision_config.spatial_merge_size

    def _grids(self, thw: Tensor) -> list[Grid]:
        return [Grid(t, h // self._merge, w // self._merge) for t, h, w in thw.tolist()]

    def tower_grids(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Grid]:
        return self._grids(kwargs["grid_thw"] if "grid_thw" in kwargs else args[1])

    def incoming(self, kwargs: dict[str, Any]) -> dict[str, list[Grid]]:
        return {
            modality: self._grids(kwargs[grid])
            for modality, (pixels, grid) in SOURCES.items()
            if kwargs.get(pixels) is not None and kwargs.get(grid) is not None
        }

    def take(self, kwargs: dict[str, Any], chosen: dict[str, list[int]]) -> dict[str, Any]:
        taken: dict[str, Any] = {}
        for modality, numbers in chosen.items():
            pixels, grid = SOURCES[modality]
            parts = kwargs[pixels].split(kwargs[grid].prod(-1).tolist())
            none = kwargs[pixels][:0]
            taken |= {pixels: torch.cat([none, *(parts[i] for i in numbers)]), grid: kwargs[grid][numbers]}
        return taken

    def block_of(self, tap: Tap) -> int:
        # windowed blocks cannot compare tokens of different windows: take the last block with full attention
        return self.resolve_block(tap, max(self.config.vision_config.fullatt_block_indexes))

    def attention_module(self, block: nn.Module) -> nn.Module:
        return block.attn  # type: ignore[return-value]

    def read_attention(
        self,
        tap: Tap,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        grids: Sequence[Grid],
    ) -> list[Tensor]:
        attn: Any = module
        hidden = args[0] if args else kwargs["hidden_states"]
        q, k, _ = attn.qkv(hidden).unflatten(-1, (3, attn.num_heads, -1)).unbind(1)  # [S, H, d] each
        if tap.kind == "keys":
            return self._units(k.flatten(1), grids).mean_per_image()
        cos, sin = (t.unsqueeze(1).to(q.dtype) for t in kwargs["position_embeddings"])
        bounds = kwargs["cu_seqlens"] if "cu_seqlens" in kwargs else args[1]
        q, k = rotate(q, cos, sin).transpose(0, 1), rotate(k, cos, sin).transpose(0, 1)
        received = received_attention(q, k, attn.head_dim**-0.5, bounds.diff().tolist())
        return [x.squeeze(1) for x in self._units(received[:, None], grids).mean_per_image()]

    def read_hidden(self, output: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        return self._units(output, grids).mean_per_image()

    def _units(self, patches: Tensor, grids: Sequence[Grid]) -> _Units:
        window = self.config.vision_config.window_size // self.config.vision_config.patch_size // self._merge
        return _Units(patches.unflatten(0, (-1, self._merge**2)), grids, window)


class _Units:
    """Patches in the tower's order `[units, merge**2, D]`, to be read as tokens in raster order."""

    def __init__(self, patches: Tensor, grids: Sequence[Grid], window: int) -> None:
        self.patches, self.grids, self.window = patches, grids, window

    def mean_per_image(self) -> list[Tensor]:
        tokens, start = [], 0
        for grid in self.grids:
            own = self.patches[start : start + grid.size].mean(1)
            # the tower's order: window by window, raster within each
            order = grid.windows(self.window).argsort(stable=True).to(own.device)
            tokens.append(torch.empty_like(own).index_copy_(0, order, own))
            start += grid.size
        return tokens
