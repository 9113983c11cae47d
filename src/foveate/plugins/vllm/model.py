"""vLLM's models with fewer visual tokens: features are pruned where they were encoded, positions travel with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.core.grid import Grid
from foveate.core.selection import Selection
from foveate.core.view import Tap
from foveate.errors import InputError
from foveate.families.base import Family
from foveate.families.layout import ImageShape
from foveate.plugins.vllm.carrying import digits, numbers
from foveate.plugins.vllm.processing import EXTENT, KEPT, SHARE, plan_of
from foveate.plugins.vllm.tower import Tower

AXES = 3


_Stock: Any = object
"""Stands for a vLLM class: which one is known when a model is registered."""


class PrunedModel(_Stock):
    """Mixed into a model class of vLLM.

    Kept tokens stand at their positions in the unpruned prompt, as everywhere in this library. Which tokens are kept is
    known only when the image was encoded, so vLLM is told the position of the whole image, and the place of every
    token in it comes with its features: as further columns, which `embed_input_ids` takes off again.

    Class attributes:
        supports_mrope: tells vLLM to ask for positions.
    """

    supports_mrope: ClassVar[bool] = True
    config: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.plan = plan_of(vllm_config.model_config)
        self.carries_positions = bool(vllm_config.model_config.uses_mrope)
        stock = getattr(self, self.get_mm_mapping().tower_model[0].rstrip("."))
        self.tower = Tower(stock, self.plan.images.family, self.plan.settings.method.taps(self.plan.info))
        # read by captured graphs, so it is one tensor for ever
        most = vllm_config.scheduler_config.max_num_batched_tokens
        device = vllm_config.device_config.device
        self.register_buffer("offsets", torch.zeros(AXES, most + 1, dtype=torch.long, device=device), persistent=False)

    def embed_multimodal(self, **kwargs: Any) -> Sequence[Tensor]:
        """Features of what stays of every image; where positions are carried, with columns for them."""
        kept, share = kwargs.pop(KEPT, None), kwargs.pop(SHARE, None)
        kwargs.pop(EXTENT, None)
        if kept is None:
            raise InputError("This server prunes images, which must come as pictures, not as embeddings.")
        images = self.plan.images
        shapes, grids = images.shapes(kwargs), images.tower_grids(kwargs)
        with self.tower.reading(grids):
            features = super().embed_multimodal(**kwargs)
        tiles = list(zip(grids, self.tower.values(grids), strict=True))
        found = []
        for number, (shape, own) in enumerate(zip(shapes, features, strict=True)):
            mine, tiles = tiles[: shape.tiles], tiles[shape.tiles :]
            keep = float(share.flatten()[number])
            taps = _joined(images.family, shape, mine)
            selection = self.plan.select(shape, own[:, : self._width], taps, None if math.isnan(keep) else keep)
            planned = int(kept.flatten()[number])
            assert len(selection) == planned, f"{planned} tokens were planned, {len(selection)} kept"
            found.append(self._pruned(own, selection, shape))
        return tuple(found)

    @property
    def _width(self) -> int:
        """Of what enters the first layer; features may bring more columns for later ones."""
        width: int = self.config.get_text_config().hidden_size
        return width

    def _pruned(self, features: Tensor, selection: Selection, shape: ImageShape) -> Tensor:
        """`[m, D]`: only the columns of the first layer are merged, as in the engine."""
        parts = [selection.apply(features[:, : self._width]), features[selection.index, self._width :]]
        if self.carries_positions:
            positions = self.plan.images.positions(shape).to(features.device)[selection.index]
            parts.append(digits(positions).to(features.dtype))
        return torch.cat(parts, dim=1)

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        """Takes the carried positions off the features, for the `forward` that follows."""
        if self.carries_positions:
            self.offsets.zero_()
            if multimodal_embeddings is not None and len(multimodal_embeddings):
                assert is_multimodal is not None
                carried = torch.cat([numbers(own[:, -2 * AXES :]) for own in multimodal_embeddings])
                places = is_multimodal.to(carried.device).nonzero().squeeze(1)
                self.offsets[:, places] = carried.T
                multimodal_embeddings = [_cut(own) for own in multimodal_embeddings]
        found: Tensor = super().embed_input_ids(input_ids, multimodal_embeddings, is_multimodal=is_multimodal)
        return found

    def forward(self, input_ids: Any, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.carries_positions and positions.dim() == 2:
            positions = positions + self.offsets[:, : positions.shape[1]]
            positions = positions[0] if self.plan.images.one_axis else positions
        return super().forward(input_ids, positions, *args, **kwargs)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """`[3, n]` positions of a prompt's tokens, and by how much later ones differ from their number.

        All placeholders of an image have the position of its first token.
        """
        positions = torch.ones(len(input_tokens), dtype=torch.long)  # steps to the next token, at first
        for feature in mm_features:
            place = feature.mm_position
            inside = torch.ones(place.length, dtype=torch.bool) if place.is_embed is None else place.is_embed
            columns = inside.nonzero().squeeze(1) + place.offset
            positions[columns] = 0
            positions[columns[-1]] = int(feature.data[EXTENT].data)
        after = positions.cumsum(0)
        end = int(after[-1])
        return (after - positions).expand(AXES, -1).contiguous(), end - len(input_tokens)


def _joined(family: Family, shape: ImageShape, tiles: Sequence[tuple[Grid, Mapping[Tap, Tensor]]]) -> dict[Tap, Tensor]:
    """What was read of the tower's images, as values of the tokens of the one image that they make."""
    grids = [grid for grid, _ in tiles]
    return {tap: family.join(shape, grids, [taps[tap] for _, taps in tiles]) for tap in tiles[0][1]}


def _cut(features: Tensor) -> Tensor:
    """Without the carried columns; what vLLM noted about the tensor stays."""
    from vllm.multimodal.utils import copy_mm_embedding_modality

    return copy_mm_embedding_modality(features, features[:, : -2 * AXES])
