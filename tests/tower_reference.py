"""The reference for pruned vision towers: every token stays, and dropped ones are masked as keys from their block on.

Written for itself: attention over all patches at once, in raster order, with segments as masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from foveate.core.grid import Grid
from foveate.core.method import Choice
from foveate.core.selection import Selection
from foveate.core.tower import TowerStage, TowerView
from foveate.core.tower_method import TowerMethod
from foveate.core.view import ModelInfo
from foveate.families import adapt
from foveate.trace.records import PrefillTrace, TowerStep

DROP = -1e30


class DropInTower(TowerMethod):
    """Keeps a random subset before every given block; the subset depends on the place of the image in the call."""

    def __init__(self, blocks: Sequence[int], share: float, seed: int) -> None:
        for name, value in {"keep": 0.5, "positions": "original", "blocks": blocks, "share": share}.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "seed", seed)
        self.__post_init__()

    def parameters(self) -> dict[str, Any]:
        return {}

    def tower_stages(self, info: ModelInfo) -> Sequence[TowerStage]:
        return [TowerStage(block) for block in self.blocks]  # type: ignore[attr-defined]

    def select_in_tower(self, view: TowerView) -> Choice:
        random = torch.Generator().manual_seed(self.seed * 100 + 10 * view.block + view.image)  # type: ignore[attr-defined]
        count = max(1, int(len(view) * self.share))  # type: ignore[attr-defined]
        return torch.randperm(len(view), generator=random)[:count].sort().values


class DropByPixels(DropInTower):
    """Chooses before patches are embedded."""

    def tower_stages(self, info: ModelInfo) -> Sequence[TowerStage]:
        return [TowerStage(block, pixels=True) for block in self.blocks]  # type: ignore[attr-defined]


class DropFrame(DropInTower):
    """Drops the middle frame of every clip, and a random part of the others."""

    def select_in_tower(self, view: TowerView) -> Choice:
        frame = view.grid.coordinates()[view.index, 0]
        kept = super().select_in_tower(view)
        assert isinstance(kept, Tensor)
        mask = torch.zeros(len(view), dtype=torch.bool).index_fill_(0, kept, True) & (frame != view.grid.t // 2)
        mask[0] = True
        return Selection.from_mask(mask)


def steps_of(trace: PrefillTrace) -> list[tuple[TowerStep, ...]]:
    """Of all images of a batch, in the order in which they are encoded."""
    return [steps for group in trace.groups for steps in group.tower]


def _alive(steps: Sequence[TowerStep], block: int, size: int) -> Tensor:
    alive = torch.ones(size, dtype=torch.bool)
    for step in steps:
        if step.block <= block:
            alive = torch.zeros(size, dtype=torch.bool).index_fill_(0, step.alive, True)
    return alive


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, seen: Tensor) -> Tensor:
    """`[n, H * d]` of `[n, H, d]`; a query that sees nothing sees itself, so that nothing is nan."""
    seen = seen | torch.eye(len(q), dtype=torch.bool)
    weights = (torch.einsum("ihd,jhd->hij", q, k) * scale).masked_fill(~seen, DROP).softmax(-1)
    return torch.einsum("hij,jhd->ihd", weights, v).flatten(1)


def _rotary(h: int, w: int, t: int, merge: int, width: int) -> tuple[Tensor, Tensor]:
    """Two-dimensional positions of patches, block after block of `merge` x `merge`."""
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    places = [
        x.reshape(h // merge, merge, w // merge, merge).transpose(1, 2).flatten().repeat(t) for x in (rows, columns)
    ]
    frequencies = 1.0 / 10000 ** (torch.arange(0, width // 2, 2).float() / (width // 2))
    angles = torch.cat([place[:, None] * frequencies for place in places], 1)
    angles = torch.cat([angles, angles], 1)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cos[:, None] + turned * sin[:, None]


@torch.no_grad()
def packed_features(model: Any, pixels: Tensor, thw: Tensor, steps: Sequence[Sequence[TowerStep]]) -> Any:
    """Features `[N, D]` of every image in raster order, and of every DeepStack block."""
    tower: Any = adapt(model).parts.tower
    merge, config, start = tower.spatial_merge_size, tower.config, 0
    found: list[Tensor] = []
    deep: list[list[Tensor]] = [[] for _ in getattr(config, "deepstack_visual_indexes", ())]
    for (t, h, w), own in zip(thw.tolist(), steps, strict=True):
        n = t * h * w
        x = tower.patch_embed(pixels[start : start + n])
        start += n
        if hasattr(tower, "pos_embed"):
            x = x + _grid_positions(tower, t, h, w)
        grid = Grid(t, h // merge, w // merge)
        frame = torch.arange(grid.size) // (grid.h * grid.w)
        side = getattr(config, "window_size", 0) // config.patch_size // merge
        cos, sin = _rotary(h, w, t, merge, x.shape[1] // config.num_heads)
        for number, block in enumerate(tower.blocks):
            windowed = side and number not in config.fullatt_block_indexes
            segment = (grid.windows(side) if windowed else frame).repeat_interleave(merge**2)
            alive = _alive(own, number, grid.size).repeat_interleave(merge**2)
            qkv = block.attn.qkv(block.norm1(x)).view(n, 3, config.num_heads, -1)
            q, k, v = qkv.unbind(1)
            seen = (segment[:, None] == segment[None]) & alive[None]
            out = _attend(_rotate(q, cos, sin), _rotate(k, cos, sin), v, q.shape[-1] ** -0.5, seen)
            x = x + block.attn.proj(out)
            x = x + block.mlp(block.norm2(x))
            if deep and number in config.deepstack_visual_indexes:
                level = list(config.deepstack_visual_indexes).index(number)
                deep[level].append(tower.deepstack_merger_list[level](x))
        found.append(tower.merger(x))
    return found, [torch.cat(level) for level in deep]


def _grid_positions(tower: Any, t: int, h: int, w: int) -> Tensor:
    """Learned positions, bilinear between the places of their grid, in the order of the patches."""
    side, merge = tower.num_grid_per_side, tower.spatial_merge_size
    table = tower.pos_embed.weight.view(side, side, -1).permute(2, 0, 1)[None]
    grid = torch.nn.functional.interpolate(table, size=(h, w), mode="bilinear", align_corners=True)[0]
    blocks = grid.reshape(-1, h // merge, merge, w // merge, merge).permute(1, 3, 2, 4, 0)
    return blocks.reshape(h * w, -1).repeat(t, 1)


@torch.no_grad()
def row_features(model: Any, pixels: Tensor, steps: Sequence[Sequence[TowerStep]]) -> Tensor:
    """`[B, N, D]` features of a CLIP or SigLIP tower with a projector, of its last block but one."""
    vision: Any = model.model.vision_tower
    classes = int(hasattr(vision.embeddings, "class_embedding"))
    embedded = vision.embeddings(pixels)
    if classes:
        embedded = vision.pre_layrnorm(embedded)
    found = []
    for x, own in zip(embedded, steps, strict=True):
        for number, block in enumerate(vision.encoder.layers[:-1]):
            alive = torch.cat([torch.ones(classes, dtype=torch.bool), _alive(own, number, len(x) - classes)])
            attention, y = block.self_attn, block.layer_norm1(x)
            q, k, v = (
                project(y).view(len(x), attention.num_heads, -1)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            out = _attend(q, k, v, q.shape[-1] ** -0.5, alive[None].expand(len(x), -1))
            x = x + attention.out_proj(out)
            x = x + block.mlp(block.layer_norm2(x))
        found.append(model.model.multi_modal_projector(x[classes:]))
    return torch.stack(found)


@contextmanager
def masked_tower(model: Any, inputs: dict[str, Any], trace: PrefillTrace) -> Iterator[None]:
    """Within the block a stock model gets its features from the reference."""
    steps, base = steps_of(trace), adapt(model).parts.base
    if model.config.model_type == "llava":
        features = row_features(model, inputs["pixel_values"], steps)
        module: Any = base.multi_modal_projector

        def hook(module: Any, args: Any, output: Any) -> Any:
            return features
    else:
        kind = "image" if "image_grid_thw" in inputs else "video"
        pixels = inputs["pixel_values" if kind == "image" else "pixel_values_videos"]
        dense, deep = packed_features(model, pixels, inputs[f"{kind}_grid_thw"], steps)
        module = base.visual

        def hook(module: Any, args: Any, output: Any) -> Any:
            output.pooler_output = torch.cat(dense)
            if deep:
                output.deepstack_features = deep
            return output

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
