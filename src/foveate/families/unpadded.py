"""LLaVA-NeXT and OneVision: a thumbnail, then tiles stitched together without padding, a newline behind each row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.image_processing_utils import select_best_resolution

from foveate.core.grid import Grid
from foveate.errors import InputError
from foveate.families.base import Family
from foveate.families.layout import ImageShape
from foveate.families.tables import side


class Stitched(NamedTuple):
    """How the tokens of one picture came about.

    Attributes:
        down, across: tiles; 0 if there is only the thumbnail.
        h, w: tokens without padding.
        rows, columns: tokens in the language model, fewer than these where the picture is scaled down.
    """

    down: int
    across: int
    h: int
    w: int
    rows: int
    columns: int

    def tokens(self, side: int) -> int:
        return side**2 + (self.rows * (self.columns + 1) if self.down else 1)


class Unpadded(Family):
    """Budgets are per picture, thumbnail included; newlines always stay."""

    model_types: ClassVar[tuple[str, ...]] = ("llava_next", "llava_next_video", "llava_onevision")

    @property
    def _side(self) -> int:
        vision = self.config.vision_config
        return side(vision.image_size) // side(vision.patch_size)

    @property
    def _most_tiles(self) -> int | None:
        """Pictures of more tokens than so many tiles are scaled down."""
        aspect = getattr(self.config, "vision_aspect_ratio", None)
        return int(aspect.removeprefix("anyres_max_")) if isinstance(aspect, str) and "max_" in aspect else None

    def incoming(self, kwargs: dict[str, Any]) -> dict[str, list[ImageShape]]:
        sizes = kwargs.get("image_sizes")
        if kwargs.get("pixel_values") is None or not isinstance(sizes, Tensor) or "video" in self.given(kwargs):
            return {}
        counts = kwargs.get("batch_num_images")
        single = [True] * len(sizes) if counts is None else [n == 1 for n in counts.tolist() for _ in range(n)]
        whole = Stitched(0, 0, 0, 0, 0, 0)
        pictures = [
            self._stitched(h, w) if tiled else whole for (h, w), tiled in zip(sizes.tolist(), single, strict=True)
        ]
        return {"image": [self._shape(picture) for picture in pictures]}

    def _stitched(self, height: int, width: int) -> Stitched:
        """Of a picture of so many pixels."""
        tile = side(self.config.vision_config.image_size)
        tall, wide = select_best_resolution((height, width), self.config.image_grid_pinpoints)
        down, across = tall // tile, wide // tile
        h, w = down * self._side, across * self._side
        if width / height > w / h:
            h -= 2 * ((h - int(round(height * (w / width), 7))) // 2)
        else:
            w -= 2 * ((w - int(round(width * (h / height), 7))) // 2)
        return self._scaled(down, across, h, w)

    def _scaled(self, down: int, across: int, h: int, w: int) -> Stitched:
        rows, columns, most = h, w, self._most_tiles
        if most is not None and (ratio := math.sqrt(h * w / (most * self._side**2))) > 1.1:
            rows, columns = int(h // ratio), int(w // ratio)
        return Stitched(down, across, h, w, rows, columns)

    @cached_property
    def _candidates(self) -> list[Stitched]:
        """Every way in which a picture may be stitched: one of its sides has no padding, and fewer tiles would not do.
        Those of few tiles come first."""
        tile, own = side(self.config.vision_config.image_size), self._side
        pins = sorted({(tall // tile, wide // tile) for tall, wide in self.config.image_grid_pinpoints}, key=math.prod)
        found = [Stitched(0, 0, 0, 0, 0, 0)]
        for number, (down, across) in enumerate(pins):
            full_h, full_w = down * own, across * own
            fewer = [pin for pin in pins[:number] if math.prod(pin) < down * across]
            for h in range(full_h, 0, -2):  # padding is the same on both sides; what is left of it was rounded down
                if not any(h < d * own and across <= a for d, a in fewer):
                    found.append(self._scaled(down, across, h, full_w))
            for w in range(full_w - 2, 0, -2):
                if not any(w < a * own and down <= d for d, a in fewer):
                    found.append(self._scaled(down, across, full_h, w))
        return found

    def _of_size(self, size: int, features: Tensor | None) -> Stitched:
        """The picture of `size` tokens; of several that fit, that of as many rows as features have newlines."""
        found = [picture for picture in self._candidates if picture.tokens(self._side) == size]
        rows = None if features is None else self._rows(features)
        fitting = [picture for picture in found if max(picture.rows, 1) == rows]
        if not found:
            raise InputError(
                f"No picture has {size} visual tokens on '{self.name}'. Chunked prefill (`prefill_chunk_size`) cannot "
                "be pruned; leave it unset."
            )
        return (fitting or found)[0]

    def _rows(self, features: Tensor) -> int | None:
        """How many newlines stand behind the thumbnail, one if there is only that; None without such an embedding."""
        newline = getattr(self.parts.base, "image_newline", None)
        if newline is None or newline.shape[-1:] != features.shape[-1:]:
            return None
        return int((features[self._side**2 :] == newline.to(features)).all(-1).sum())

    def _like(self, shape: ImageShape) -> list[Stitched]:
        """All pictures whose tokens lie so."""
        rows, columns = shape.grids[-1][1:] if len(shape.grids) > 1 else (0, 0)
        return [picture for picture in self._candidates if (picture.rows, picture.columns) == (rows, columns)]

    # -- what the engine asks ----------------------------------------------------------------------------

    def tower_counts(self, modality: str, shape: ImageShape, grids: Sequence[Grid]) -> Sequence[int]:
        if modality == "video":
            return [shape.grids[0].t]
        return sorted({1 + picture.down * picture.across for picture in self._like(shape)})

    @property
    def _frame(self) -> Grid:
        """Tokens of one frame of a video."""
        stride = getattr(self.config, "spatial_pool_stride", 2)
        half = math.ceil(self._side / stride) if self._most_tiles is not None else self._side // stride
        return Grid(1, half, half)

    def shape(self, modality: str, size: int, grids: Sequence[Grid], features: Tensor | None = None) -> ImageShape:
        if modality == "image":
            return self._shape(self._of_size(size, features))
        frames, newline = divmod(size, self._frame.size)
        grid = Grid(frames, *self._frame[1:])
        return ImageShape((grid,), tuple(range(grid.size, grid.size + newline)))

    def _shape(self, picture: Stitched) -> ImageShape:
        thumbnail = Grid(1, self._side, self._side)
        if not picture.down:
            return ImageShape((thumbnail,), (thumbnail.size,))
        line = picture.columns + 1
        newlines = [thumbnail.size + row * line + picture.columns for row in range(picture.rows)]
        grids = (thumbnail, Grid(1, picture.rows, picture.columns))
        return ImageShape(grids, tuple(newlines), tiles=1 + picture.down * picture.across)

    def join(self, shape: ImageShape, grids: Sequence[Grid], values: Sequence[Tensor]) -> Tensor:
        own = self._side
        squares = torch.stack([value.reshape(own, own, -1).float() for value in values])
        first = shape.grids[0]
        if first[1:] != (own, own):  # frames of a video, pooled
            pooled = F.interpolate(squares.permute(0, 3, 1, 2), size=first[1:], mode="bilinear")
            joined = pooled.permute(0, 2, 3, 1).flatten(0, 2)
        else:
            joined = self._joined(shape, squares)
        return joined.to(values[0].dtype).view(-1, *values[0].shape[1:])

    def _joined(self, shape: ImageShape, squares: Tensor) -> Tensor:
        """`[N, D]` of `[tiles, side, side, D]`: the thumbnail, then the tiles stitched, cut and scaled."""
        parts = [squares[0].flatten(0, 1)]
        if len(shape.grids) > 1:
            cut = [(p.down * p.across, p) for p in self._like(shape) if p.down * p.across < len(squares)]
            count, picture = max(cut, key=lambda pair: pair[0])  # padding may come behind the tiles
            tiles = squares[1 : count + 1].unflatten(0, (picture.down, picture.across))
            whole = tiles.permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2, 3)  # [D, rows, columns]
            top, left = ((full - cut) // 2 for full, cut in zip(whole.shape[1:], (picture.h, picture.w), strict=True))
            whole = whole[:, top : top + picture.h, left : left + picture.w]
            if (picture.rows, picture.columns) != (picture.h, picture.w):
                whole = F.interpolate(whole[None], size=(picture.rows, picture.columns), mode="bilinear")[0]
            parts.append(whole.flatten(1).T)
        return torch.cat(parts)


class Granite4Vision(Unpadded):
    """Granite 4 Vision: a small Q-Former in every window makes fewer tokens of its patches."""

    model_types: ClassVar[tuple[str, ...]] = ("granite4_vision",)

    @property
    def _side(self) -> int:
        return int(super()._side * Fraction(self.config.downsample_rate))
