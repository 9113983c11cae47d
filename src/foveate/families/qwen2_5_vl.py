"""Qwen2.5-VL: windowed vision transformer at native resolution, 2 x 2 patch merger, M-RoPE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.grid import Grid
from foveate.core.view import Tap
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
            if not numbers:
                taken |= {pixels: None, grid: None}
                continue
            parts = kwargs[pixels].split(kwargs[grid].prod(-1).tolist())
            taken |= {pixels: torch.cat([parts[i] for i in numbers]), grid: kwargs[grid][numbers]}
        return taken

    def without_images(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**kwargs, "mm_encoder_outputs": None} | {name: None for pair in SOURCES.values() for name in pair}

    def block_of(self, tap: Tap) -> int:
        # windowed blocks cannot compare tokens of different windows: take the last block with full attention
        return self.resolve_block(tap, max(self.config.vision_config.fullatt_block_indexes))

    def block_attention(self, block: nn.Module) -> nn.Module:
        return block.attn  # type: ignore[return-value]

    def key_features(self, block: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
        return block.attn.qkv, lambda joined: joined.unflatten(-1, (3, -1))[..., 1, :]  # type: ignore[union-attr,return-value]

    def to_tokens(self, tap: Tap, values: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        if tap.kind == "received":
            return [value.squeeze(1) for value in self._units(values[0, :, None], grids).mean_per_image()]
        return self._units(values, grids).mean_per_image()

    def rotary(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return super().rotary(hidden, positions.expand(3, *positions.shape))

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
