"""What is true of one model, found by probing its structure, with tables for what cannot be probed."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.grid import Grid, Unplaced
from foveate.core.host import listed
from foveate.core.view import ModelInfo
from foveate.errors import UnsupportedModelError
from foveate.families.layout import ImageShape, shape_of
from foveate.families.parts import Parts, find_parts, layer_facts
from foveate.families.refusals import NO_VIDEO
from foveate.families.tables import (
    BY_ROW,
    CLASS_TOKEN_LAST,
    ENCODED_IN_FRAMES,
    ENCODES_LATE,
    FRAMED,
    IN_FRAMES,
    MERGES,
    ONE_TOKEN,
    RESAMPLED,
    TILED,
    Merge,
    merge_factor,
    side,
)

TOKEN_NAMES = {
    "image": ("image_token_id", "image_token_index", "image_patch_id", "img_context_token_id"),
    "video": ("video_token_id", "video_token_index"),
}
PIXEL_NAMES = {
    "image": ("pixel_values", "pixel_values_images", "image_patches", "image_pixel_values"),
    "video": ("pixel_values_videos",),
}
"""Arguments that bring images or videos."""

BESIDE = ("image_sizes", "spatial_shapes", "pixel_attention_mask")
"""Arguments that come with an entry an image beside the pixels."""

GRID_NAMES = {"image": "image_grid_thw", "video": "video_grid_thw"}
CLASS_TOKENS = ("class_embedding", "cls_token")


class Probed:
    """Parts, facts and inputs of a model.

    Raises:
        UnsupportedModelError: a part was not found, or images enter otherwise than as tokens of a decoder.
    """

    def __init__(self, model: nn.Module) -> None:
        config: Any = model.config
        self.config = config
        self.name = str(self.config.model_type)
        self.parts: Parts = find_parts(model)
        self.layers = layer_facts(self.parts.text)
        self.token_ids: dict[str, int] = self._token_ids()
        self.merge: Merge = MERGES.get(self.name, "none")

    def _token_ids(self) -> dict[str, int]:
        """Placeholder token id per modality (`image`, `video`), in the order in which features are joined."""
        places = [self.config, getattr(self.config, "vision_config", None), getattr(self.config, "text_config", None)]
        found: dict[str, int] = {}
        for modality, names in TOKEN_NAMES.items():
            ids = [value for place in places for name in names if isinstance(value := getattr(place, name, None), int)]
            if ids and ids[0] not in found.values():  # some types have one token for both
                found[modality] = ids[0]
        if not found:
            raise UnsupportedModelError(
                f"{type(self.parts.base).__name__} ({self.name}): no placeholder token id was found in its "
                f"configuration (one of {', '.join(TOKEN_NAMES['image'])}), so visual tokens cannot be told from text."
            )
        return found

    def placeholders(self, given: Sequence[str]) -> dict[str, int]:
        """Placeholder token id per modality in a call that brings the modalities `given`."""
        if self.shares_token:
            return dict.fromkeys(given, self.token_ids["image"])
        return self.token_ids

    @property
    def shares_token(self) -> bool:
        """Whether videos stand on the placeholder token of images."""
        return self.name in ONE_TOKEN

    @property
    def modalities(self) -> tuple[str, ...]:
        """What can be pruned: `image`, `video`."""
        known = "video" in self.token_ids or self.shares_token
        takes = known and "pixel_values_videos" in self.arguments and self.name not in NO_VIDEO
        return ("image", "video") if takes else ("image",)

    # -- facts -------------------------------------------------------------------------------------------

    @cached_property
    def has_class_token(self) -> bool:
        """Whether the tower has a class token, whose attention `Tap("received")` reads."""
        tower = self.parts.tower
        names = [] if tower is None else [name.rpartition(".")[2] for name, _ in tower.named_parameters()]
        return any(name in CLASS_TOKENS for name in names)

    @property
    def class_token_last(self) -> bool:
        return self.name in CLASS_TOKEN_LAST

    @property
    def unreadable(self) -> str | None:
        """Why nothing of the vision tower can be read, None if it can."""
        if self.name in ENCODES_LATE:
            return "its language model encodes the images itself, when tokens have been chosen"
        if not len(self.parts.blocks):
            return "no vision transformer"
        if self.merge != "none":
            return None
        return "a resampler mixes all patches" if self.name in MERGES else "which patches make a token is not known"

    @cached_property
    def info(self) -> ModelInfo:
        layers, blocks = len(self.parts.layers), len(self.parts.blocks)
        readable = self._readable()
        whole = readable if len(readable) < layers else None
        own = [(i, facts.kind) for i, facts in enumerate(self.layers) if facts.source == i and i not in readable]
        windowed = tuple(i for i, kind in own if kind in ("sliding", "chunked"))
        heads, feeding = self.tower_heads, self._feeding_blocks()
        return ModelInfo(self.name, layers, blocks, self.has_class_token, heads, whole, windowed, feeding)

    def _feeding_blocks(self) -> int:
        """Vision blocks, from the first on, that every feature of the projector comes through."""
        feature = getattr(self.config, "vision_feature_layer", None)
        features = feature if isinstance(feature, list | tuple) else [feature]
        blocks = len(self.parts.blocks)
        # `hidden_states` has one entry more than there are blocks, the first is the embedding
        return min((f if f >= 0 else blocks + 1 + f) if isinstance(f, int) else blocks for f in features)

    @cached_property
    def sources(self) -> frozenset[int]:
        """Layers whose keys other layers read."""
        return frozenset(facts.source for i, facts in enumerate(self.layers) if facts.source != i)

    def _readable(self) -> tuple[int, ...]:
        """Layers whose keys and attention are about all tokens; where every layer has a window, all of them."""
        own = [(i, facts.kind) for i, facts in enumerate(self.layers) if facts.kind != "linear" and facts.source == i]
        whole = tuple(i for i, kind in own if kind == "full")
        return whole or tuple(i for i, _ in own)

    @cached_property
    def tower_heads(self) -> int:
        """Attention heads of a vision block, 0 if its configuration does not say or it cannot be read."""
        if self.unreadable is not None:
            return 0
        vision = getattr(self.config, "vision_config", None)
        return getattr(vision, "num_attention_heads", None) or getattr(vision, "num_heads", None) or 0

    @cached_property
    def arguments(self) -> frozenset[str]:
        """What the base model can be given."""
        return frozenset(parameters(self.parts.base))

    @property
    def wants_token_types(self) -> bool:
        """Whether the model needs `mm_token_type_ids` from the processor."""
        return "mm_token_type_ids" in self.arguments

    @cached_property
    def hidden_names(self) -> tuple[str, ...]:
        """What each decoder layer calls the hidden states that it is given."""
        return tuple(next(iter(parameters(layer))) for layer in self.parts.layers)

    # -- what a call brings ------------------------------------------------------------------------------

    def given(self, kwargs: dict[str, Any]) -> list[str]:
        """Modalities of which a call of the base model brings raw images."""
        return [m for m, names in PIXEL_NAMES.items() if any(kwargs.get(name) is not None for name in names)]

    def incoming(self, kwargs: dict[str, Any]) -> dict[str, list[ImageShape]]:
        """Per modality, the raw images that a call of the base model brings, as far as its arguments tell."""
        found = {}
        for modality in self.given(kwargs):
            thw = kwargs.get(GRID_NAMES[modality])
            if thw is not None:
                found[modality] = [self._whole(modality, grid) for grid in self._merged(thw)]
        return found

    def _whole(self, modality: str, grid: Grid) -> ImageShape:
        if self.name in FRAMED:
            return self.shape(modality, grid.t * (grid.h * (grid.w + 1) + 2), [grid])
        return ImageShape((grid,))

    def take(self, kwargs: dict[str, Any], chosen: dict[str, list[int]]) -> dict[str, Any]:
        """The raw-image arguments of such a call with only the chosen images of each modality."""
        taken: dict[str, Any] = {}
        for modality, numbers in chosen.items():
            pixels = next(name for name in PIXEL_NAMES[modality] if kwargs.get(name) is not None)
            grid = GRID_NAMES[modality]
            if kwargs.get(grid) is None:
                own = [pixels, *(name for name in BESIDE if kwargs.get(name) is not None and modality == "image")]
                taken |= {name: kwargs[name][numbers] if numbers else None for name in own}
                continue
            parts = kwargs[pixels].split(kwargs[grid].prod(-1).tolist())
            taken[pixels] = torch.cat([parts[i] for i in numbers]) if numbers else None
            taken[grid] = kwargs[grid][numbers] if numbers else None
        return taken

    def without_images(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of such a call with no images at all."""
        names = [name for names in PIXEL_NAMES.values() for name in names] + list(GRID_NAMES.values())
        return kwargs | {name: None for name in (*names, "mm_encoder_outputs") if name in kwargs}

    def tower_grids(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Grid]:
        """Grids in tokens of the images (or tiles) in one call of the tower; empty if it cannot be told."""
        tower: Any = self.parts.tower
        given = {**dict(zip(parameters(tower), args, strict=False)), **kwargs}
        for name in ("grid_thw", "image_grid_thw"):
            if isinstance(given.get(name), Tensor):
                return self._merged(given[name])
        factor = self.factor
        if isinstance(given.get("spatial_shapes"), Tensor):
            return [Grid(1, h // factor, w // factor) for h, w in given["spatial_shapes"].tolist()]
        places = given.get("pixel_position_ids")
        if isinstance(places, Tensor):  # (column, row) of every patch, negative on padding
            return [Grid(1, (y + 1) // factor, (x + 1) // factor) for x, y in places.amax(1).tolist()]
        pixels = given.get("pixel_values", given.get("hidden_states"))
        patch = getattr(getattr(tower, "config", None), "patch_size", None)
        if not isinstance(pixels, Tensor) or pixels.dim() != 4 or patch is None:
            return []
        patch = side(patch) * factor
        sizes = given.get("image_sizes")
        if sizes is None:
            sizes = [pixels.shape[-2:]] * pixels.shape[0]
        return [Grid(1, int(h) // patch, int(w) // patch) for h, w in sizes]

    def tower_patches(self, args: tuple[Any, ...], kwargs: dict[str, Any], grids: Sequence[Grid]) -> list[int]:
        """Patches of each of these images; empty if every image is a call of its own whatever the tower is given."""
        return [grid.size * self.factor**2 for grid in grids]

    def _merged(self, thw: Tensor) -> list[Grid]:
        return [Grid(t, h // self.factor, w // self.factor) for t, h, w in listed(thw)]

    @cached_property
    def factor(self) -> int:
        """Patches per token along each side."""
        return merge_factor(self.config)

    @cached_property
    def tile_tokens(self) -> int | None:
        """Tokens of a tile, where the features of a row's tiles come in one piece."""
        if self.name not in BY_ROW:
            return None
        resampler = getattr(self.config, "perceiver_config", None)
        if resampler is not None:
            return int(resampler.resampler_n_latents)
        vision = self.config.vision_config
        return int((side(vision.image_size) // side(vision.patch_size) // self.factor) ** 2)

    def in_tiles(self, modality: str) -> bool:
        """Whether features come per tile (or frame), several of which make an image (or video)."""
        return self.name in (TILED if modality == "image" else IN_FRAMES)

    def tower_counts(self, modality: str, shape: ImageShape, grids: Sequence[Grid]) -> Sequence[int]:
        """Of how many images of the tower a feature tensor of this shape may be made.

        Args:
            grids: of what the tower encoded up to it, its own last.
        """
        if self.in_tiles(modality) or (modality == "video" and self.name in ENCODED_IN_FRAMES):
            sizes = accumulate(grid.size for grid in reversed(grids))
            return [n for n, size in enumerate(sizes, 1) if size == shape.size] or [1]
        return [1]

    def shape(self, modality: str, size: int, grids: Sequence[Grid], features: Tensor | None = None) -> ImageShape:
        """How the tokens of one feature tensor lie.

        Args:
            size: its tokens.
            grids: of the tower's images that made it, empty if unknown.
            features: `[size, D]`, where they are known.
        """
        if modality == "video" and len(set(grids)) == 1:
            grids = [Grid(sum(grid.t for grid in grids), *grids[0][1:])]
        if self.name in RESAMPLED:
            return ImageShape((Unplaced(1, 1, size),))
        return shape_of(size, grids, exact=self.merge != "none")

    def join(self, shape: ImageShape, grids: Sequence[Grid], values: Sequence[Tensor]) -> Tensor:
        """Values per token of the tower's images that make one feature tensor, as values of its `N` tokens."""
        return torch.cat(list(values))


def parameters(module: nn.Module) -> list[str]:
    return list(inspect.signature(type(module).forward).parameters)[1:]
