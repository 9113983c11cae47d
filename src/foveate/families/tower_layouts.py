"""How the visual tokens of a batch lie in a tower's blocks, so that some of them can be left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.core.grid import Grid
from foveate.errors import ConfigurationError, MissingTapError
from foveate.families.base import Family
from foveate.families.tables import side

PACKED = frozenset(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"))
"""Types whose tower takes all images behind one another, patches of a token together, segments by `cu_seqlens`."""

ROWS = frozenset(("llava",))
"""Types whose tower takes an image a row, a token a patch, and whose projector maps tokens one by one."""


ROW_TOWERS = frozenset(("clip_vision_model", "siglip_vision_model"))


@dataclass(frozen=True)
class Survivors:
    """What is alive in one call of the tower.

    Attributes:
        alive: per image `[n]` raster indices, increasing.
        sizes: per image `[n]` how many tokens each stands for.
        weighted: whether attention logits grow with the log of the sizes.
    """

    alive: tuple[Tensor, ...]
    sizes: tuple[Tensor, ...]
    weighted: bool = False


class TowerLayout(Protocol):
    """One call's layout. `own` are values of the living tokens of every image in raster order, `[n, U, D]`."""

    def pixels(self, given: Tensor) -> list[Tensor]:
        """`[N, U, K, A]` per image, of what the tower was given: `A` pixels of a patch in each of `K` planes."""

    def take(self, hidden: Tensor, now: Survivors) -> list[Tensor]:
        """Hidden states of a block's input as `own`."""

    def put(self, own: Sequence[Tensor], hidden: Tensor, now: Survivors) -> Tensor:
        """`own` as a block's input; `hidden` is the input before, which holds what is no patch (a class token)."""

    def arguments(self, kwargs: dict[str, Any], hidden: Tensor, now: Survivors) -> dict[str, Any]:
        """A block's other arguments for the survivors, from those that stock code made for everything."""

    def whole(self, values: Tensor, now: Survivors, fill: float = 0.0) -> Tensor:
        """Values in a block's layout, at the length of everything, `fill` where a token was dropped."""

    def short(self, hidden: Tensor, now: Survivors) -> Tensor:
        """What a projector is given, of the survivors only."""

    def projected(self, features: Tensor, now: Survivors, fill: float) -> Tensor:
        """What it makes of them, at the length of everything."""


def tower_layout(family: Family, grids: Sequence[Grid]) -> TowerLayout:
    """The layout of one call of the tower.

    Raises:
        MissingTapError: a family whose tower cannot be pruned.
    """
    check_prunable(family)
    return PackedLayout(family, tuple(grids)) if family.name in PACKED else RowLayout(family, tuple(grids))


def check_prunable(family: Family) -> None:
    """Raise for a family whose tower cannot be pruned.

    Raises:
        MissingTapError: names the family and those that can.
    """
    tower = getattr(getattr(family.config, "vision_config", None), "model_type", "unknown")
    if family.name not in PACKED | ROWS or (family.name in ROWS and tower not in ROW_TOWERS):
        raise MissingTapError(
            f"The vision tower of '{family.name}' ({tower}) cannot be pruned; those of "
            f"{', '.join(sorted(PACKED))} can, and of {', '.join(sorted(ROWS))} with {', '.join(sorted(ROW_TOWERS))}. "
            "Use a method without tower stages."
        )
    whole = getattr(family.config, "vision_feature_select_strategy", "default") == "full"
    if family.name in ROWS and whole == family.has_class_token:
        raise MissingTapError(
            f"'{family.name}' with vision_feature_select_strategy={'full' if whole else 'default'!r} and a tower "
            f"{'with' if whole else 'without'} a class token passes on {'more' if whole else 'less'} than its "
            "patches, so the tower cannot be pruned; use a method without tower stages."
        )


def patch_embedding(family: Family) -> nn.Module | None:
    """The module that embeds patches one by one, None where it is given whole pictures."""
    tower: Any = family.parts.tower
    return tower.patch_embed if family.name in PACKED else None


def projections(family: Family) -> list[nn.Module]:
    """Modules behind the blocks that are given living tokens and whose output must have the unpruned length."""
    tower: Any = family.parts.tower
    base: Any = family.parts.base
    if family.name in ROWS:
        return [base.multi_modal_projector]
    return [tower.merger, *getattr(tower, "deepstack_merger_list", ())]


@dataclass(frozen=True)
class PackedLayout:
    """All images behind one another (`[S, D]`, `U` patches a token), in windowed order where the tower has windows."""

    family: Family
    grids: tuple[Grid, ...]

    @property
    def patches(self) -> int:
        return int(self.family.factor**2)

    @cached_property
    def places(self) -> tuple[Tensor, ...]:
        """Per image `[N]`: where the tower has each token of the raster, in tokens from the start of the call."""
        found, start, window = [], 0, self.family.window
        for grid in self.grids:
            place = torch.arange(grid.size)
            if window:
                order = grid.windows(window).argsort(stable=True)
                place = torch.empty_like(order).index_copy_(0, order, place)
            found.append(place + start)
            start += grid.size
        return tuple(found)

    def order(self, now: Survivors) -> tuple[Tensor, Tensor]:
        """`[n]` places of all survivors, increasing, and `[n]` which of them (joined in raster order) stands there."""
        places = torch.cat([place.to(a.device)[a] for place, a in zip(self.places, now.alive, strict=True)])
        order = places.argsort()
        return places[order], order

    def pixels(self, given: Tensor) -> list[Tensor]:
        area = side(self.family.config.vision_config.patch_size) ** 2
        units = given.unflatten(0, (-1, self.patches)).unflatten(-1, (-1, area))
        return list(units.split([grid.size for grid in self.grids]))  # still in raster order

    def take(self, hidden: Tensor, now: Survivors) -> list[Tensor]:
        _, order = self.order(now)
        units = hidden.unflatten(0, (-1, self.patches))
        raster = units[torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))]
        return list(raster.split([len(a) for a in now.alive]))

    def put(self, own: Sequence[Tensor], hidden: Tensor, now: Survivors) -> Tensor:
        return torch.cat(list(own))[self.order(now)[1]].flatten(0, 1)

    def arguments(self, kwargs: dict[str, Any], hidden: Tensor, now: Survivors) -> dict[str, Any]:
        places, _ = self.order(now)
        cos, sin = kwargs["position_embeddings"]
        rotary = tuple(t.unflatten(0, (-1, self.patches))[places].flatten(0, 1) for t in (cos, sin))
        stock = kwargs["cu_seqlens"]
        segment = torch.bucketize(places * self.patches, stock[1:], right=True)
        counts = torch.bincount(segment, minlength=len(stock) - 1)
        bounds = F.pad((counts[counts > 0] * self.patches).cumsum(0), (1, 0)).to(stock.dtype)
        found: dict[str, Any] = {"position_embeddings": rotary, "cu_seqlens": bounds}
        if kwargs.get("max_seqlen") is not None:
            found["max_seqlen"] = int(bounds.diff().max())
        return found

    def whole(self, values: Tensor, now: Survivors, fill: float = 0.0) -> Tensor:
        """`[S, ...]` or `[1, S, ...]`."""
        if values.shape[0] == 1:
            return self.whole(values[0], now, fill)[None]
        return self.projected(values.unflatten(0, (-1, self.patches)), now, fill).flatten(0, 1)

    def short(self, hidden: Tensor, now: Survivors) -> Tensor:
        return hidden  # what blocks give

    def projected(self, features: Tensor, now: Survivors, fill: float) -> Tensor:
        total = sum(grid.size for grid in self.grids)
        places, _ = self.order(now)
        if len(features) == total:  # a merger of a block before any stage
            return features
        return features.new_full((total, *features.shape[1:]), fill).index_copy(0, places, features)


@dataclass(frozen=True)
class RowLayout:
    """An image a row, `[B, c + N, D]` with `c` class tokens in front; pruned rows are padded to the longest."""

    family: Family
    grids: tuple[Grid, ...]

    @property
    def extra(self) -> int:
        return int(self.family.has_class_token)

    def pixels(self, given: Tensor) -> list[Tensor]:
        patch = side(self.family.config.vision_config.patch_size)
        blocks = given.unflatten(2, (-1, patch)).unflatten(4, (-1, patch)).permute(0, 2, 4, 1, 3, 5)
        return list(blocks.flatten(1, 2).flatten(3)[:, :, None])

    def take(self, hidden: Tensor, now: Survivors) -> list[Tensor]:
        return [row[self.extra : self.extra + len(a), None] for row, a in zip(hidden, now.alive, strict=True)]

    def put(self, own: Sequence[Tensor], hidden: Tensor, now: Survivors) -> Tensor:
        longest = max(map(len, own))
        rows = [F.pad(x.squeeze(1), (0, 0, 0, longest - len(x))) for x in own]
        return torch.cat([hidden[:, : self.extra], torch.stack(rows)], 1)

    def arguments(self, kwargs: dict[str, Any], hidden: Tensor, now: Survivors) -> dict[str, Any]:
        length = hidden.shape[1]
        counts = [self.extra + len(a) for a in now.alive]
        weighted = now.weighted and any(bool((sizes != 1).any()) for sizes in now.sizes)
        if not weighted and min(counts) == length:  # a mask would cost the fast path
            return {"attention_mask": None}
        if "flash" in str(getattr(self.family.config.vision_config, "_attn_implementation", "")):
            raise ConfigurationError(
                f"The tower of '{self.family.name}' would need an attention mask, since images keep different numbers "
                "of tokens (or merged ones weigh more), and FlashAttention takes none; load the model with "
                "attn_implementation='sdpa', or ask about one image at a time without merging."
            )
        mask = hidden.new_full((len(counts), 1, 1, length), torch.finfo(hidden.dtype).min)
        for row, (count, sizes) in enumerate(zip(counts, now.sizes, strict=True)):
            mask[row, ..., :count] = 0
            if weighted:
                mask[row, ..., self.extra : count] = sizes.log().to(mask.dtype)
        return {"attention_mask": mask.expand(-1, -1, length, -1)}

    def whole(self, values: Tensor, now: Survivors, fill: float = 0.0) -> Tensor:
        """`[B, c + longest, ...]` of a block, or `[B, longest, ...]` behind the class token."""
        extra = values.shape[1] - max(map(len, now.alive))
        full = values.new_full((len(values), extra + self.grids[0].size, *values.shape[2:]), fill)
        rows = [
            empty.index_copy(0, a + extra, row[extra : extra + len(a)])
            for empty, row, a in zip(full, values, now.alive, strict=True)
        ]
        return torch.cat([values[:, :extra], torch.stack(rows)[:, extra:]], 1)

    def short(self, hidden: Tensor, now: Survivors) -> Tensor:
        return torch.cat([row[a] for row, a in zip(hidden, now.alive, strict=True)])

    def projected(self, features: Tensor, now: Survivors, fill: float) -> Tensor:
        full = features.new_full((len(self.grids), self.grids[0].size, features.shape[-1]), fill)
        own = features.split([len(a) for a in now.alive])
        return torch.stack([row.index_copy(0, a, x) for row, a, x in zip(full, now.alive, own, strict=True)])
