"""What the engine must know of a model: found by probing its structure, with tables for what cannot be probed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.core.grid import Grid
from foveate.core.view import ModelInfo, Tap
from foveate.errors import MissingTapError, UnsupportedModelError
from foveate.families.layout import ImageShape, shape_of
from foveate.families.merging import merge_patches, per_image
from foveate.families.parts import Parts, attention_of, find_parts, layer_facts
from foveate.families.tables import CLASS_TOKEN_LAST, IN_FRAMES, MERGES, TILED, Merge, merge_factor, side

TOKEN_NAMES = {
    "image": ("image_token_id", "image_token_index", "image_patch_id", "img_context_token_id"),
    "video": ("video_token_id", "video_token_index"),
}
PIXEL_NAMES = {
    "image": ("pixel_values", "pixel_values_images", "image_patches", "image_pixel_values"),
    "video": ("pixel_values_videos",),
}
"""Arguments that bring images or videos."""

GRID_NAMES = {"image": "image_grid_thw", "video": "video_grid_thw"}
CLASS_TOKENS = ("class_embedding", "cls_token")


class Family:
    """Adapter of one model: probes a stock model's structure, so that most types need no line here.

    Subclass in a file of `foveate/families/`, or in another package under the entry points `foveate.families`, for what
    probing gets wrong; `model_types` are the values of `config.model_type` that a subclass serves.

    Raises:
        UnsupportedModelError: a part was not found, or images enter otherwise than as tokens of a decoder.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    default_template: ClassVar[str | None] = None
    """Chat template for checkpoints that come without one."""

    def __init__(self, model: nn.Module) -> None:
        self.config: Any = model.config
        self.name: str = self.config.model_type
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
                f"{type(self.parts.base).__name__} ({self.name}): no placeholder token id was found in its configuration "
                f"(one of {', '.join(TOKEN_NAMES['image'])}), so visual tokens cannot be told from text."
            )
        return found

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

    @cached_property
    def info(self) -> ModelInfo:
        readable = tuple(i for i, facts in enumerate(self.layers) if facts.kind != "linear" and facts.source == i)
        layers, blocks = len(self.parts.layers), len(self.parts.blocks)
        whole = readable if len(readable) < layers else None
        return ModelInfo(self.name, layers, blocks, self.has_class_token, self.tower_heads, whole)

    @cached_property
    def tower_heads(self) -> int:
        """Attention heads of a vision block; 0 unless keys are known to have as many."""
        return 0

    @cached_property
    def wants_token_types(self) -> bool:
        """Whether the model needs `mm_token_type_ids` from the processor."""
        return "mm_token_type_ids" in _parameters(self.parts.base)

    @cached_property
    def hidden_names(self) -> tuple[str, ...]:
        """What each decoder layer calls the hidden states that it is given."""
        return tuple(next(iter(_parameters(layer))) for layer in self.parts.layers)

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
                found[modality] = [ImageShape((grid,)) for grid in self._merged(thw)]
        return found

    def take(self, kwargs: dict[str, Any], chosen: dict[str, list[int]]) -> dict[str, Any]:
        """The raw-image arguments of such a call with only the chosen images of each modality."""
        taken: dict[str, Any] = {}
        for modality, numbers in chosen.items():
            pixels = next(name for name in PIXEL_NAMES[modality] if kwargs.get(name) is not None)
            grid = GRID_NAMES[modality]
            if kwargs.get(grid) is None:
                taken[pixels] = kwargs[pixels][numbers] if numbers else None
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
        given = {**dict(zip(_parameters(tower), args, strict=False)), **kwargs}
        for name in ("grid_thw", "image_grid_thw"):
            if isinstance(given.get(name), Tensor):
                return self._merged(given[name])
        factor = self.factor
        if isinstance(given.get("spatial_shapes"), Tensor):
            return [Grid(1, h // factor, w // factor) for h, w in given["spatial_shapes"].tolist()]
        pixels = given.get("pixel_values", given.get("hidden_states"))
        patch = getattr(getattr(tower, "config", None), "patch_size", None)
        if not isinstance(pixels, Tensor) or pixels.dim() != 4 or patch is None:
            return []
        patch = side(patch) * factor
        sizes = given.get("image_sizes")
        if sizes is None:
            sizes = [pixels.shape[-2:]] * pixels.shape[0]
        return [Grid(1, int(h) // patch, int(w) // patch) for h, w in sizes]

    def _merged(self, thw: Tensor) -> list[Grid]:
        return [Grid(t, h // self.factor, w // self.factor) for t, h, w in thw.tolist()]

    @cached_property
    def factor(self) -> int:
        """Patches per token along each side."""
        return merge_factor(self.config)

    def in_tiles(self, modality: str) -> bool:
        """Whether features come per tile (or frame), several of which make an image (or video)."""
        return self.name in (TILED if modality == "image" else IN_FRAMES)

    def tower_images(self, modality: str, size: int, grids: Sequence[Grid]) -> int:
        """How many images of the tower make a feature tensor of `size` tokens.

        Args:
            grids: of what the tower encoded lately.
        """
        if not self.in_tiles(modality) or not grids or size % grids[-1].size:
            return 1
        return size // grids[-1].size  # tiles have one size

    def shape(self, modality: str, size: int, grids: Sequence[Grid]) -> ImageShape:
        """How the tokens of one feature tensor lie.

        Args:
            size: its tokens.
            grids: of the tower's images that made it, empty if unknown.
        """
        return shape_of(size, grids, exact=self.merge != "none")

    def join(self, shape: ImageShape, grids: Sequence[Grid], values: Sequence[Tensor]) -> Tensor:
        """Values per token of the tower's images that make one feature tensor, as values of its `N` tokens."""
        return torch.cat(list(values))

    # -- reading the tower -------------------------------------------------------------------------------

    def block_of(self, tap: Tap) -> int:
        """Index of the vision block that a tap reads (resolves None and negative numbers).

        Raises:
            MissingTapError: there is no such block, or no way from its patches to tokens.
        """
        blocks = len(self.parts.blocks)
        if not blocks:
            raise MissingTapError(f"{tap} reads a vision tower's blocks, but '{self.name}' has none.")
        if self.merge == "none":
            raise MissingTapError(
                f"{tap} gives a value per patch, but how patches become tokens of '{self.name}' is "
                f"{'not known' if self.name not in MERGES else 'learned (a resampler)'}; use a method without taps."
            )
        block = self.default_block if tap.block is None else tap.block
        if not -blocks <= block < blocks:
            raise MissingTapError(
                f"{tap} asks for vision block {block}, but the tower of '{self.name}' has {blocks} blocks."
            )
        return block % blocks

    @property
    def default_block(self) -> int:
        """The last block with global attention that feeds the projector."""
        feature = getattr(self.config, "vision_feature_layer", None)
        if isinstance(feature, list | tuple):
            feature = feature[-1]
        if isinstance(feature, int):  # counts `hidden_states`, of which the first is the embedding
            return feature if feature < 0 else feature - 1
        full = getattr(getattr(self.config, "vision_config", None), "fullatt_block_indexes", None)
        return max(full) if full else -1

    def block_attention(self, block: nn.Module) -> nn.Module:
        """The module of a vision block that calls the attention function."""
        found = attention_of(block)
        if found is None:
            raise MissingTapError(f"{type(block).__name__} of '{self.name}' has no attention module that can be read.")
        return found

    def key_features(self, block: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
        """The module of a vision block whose output holds its keys before rotary embedding, and how to take them out,
        heads concatenated."""
        attention: Any = self.block_attention(block)
        for name in ("k_proj", "key", "wk"):
            if isinstance(found := getattr(attention, name, None), nn.Module):
                return found, lambda keys: keys
        joined = getattr(attention, "qkv", None)
        if not isinstance(joined, nn.Module):
            raise MissingTapError(f"{type(attention).__name__} of '{self.name}' has no projection of keys to read.")
        return joined, self._middle_third(attention)

    def _middle_third(self, attention: Any) -> Callable[[Tensor], Tensor]:
        """The keys in joined queries, keys and values; fewer heads of keys than of queries are possible."""
        sizes = [getattr(attention, name, None) for name in ("num_heads", "num_key_value_heads")]
        heads = sizes[0] or 1
        fewer = sizes[1] or heads

        def keys(joined: Tensor) -> Tensor:
            width = joined.shape[-1] // (heads + 2 * fewer)
            return joined[..., heads * width : (heads + fewer) * width]

        return keys

    def to_tokens(self, tap: Tap, values: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        """Values per patch, as the tower orders them, as values per visual token in raster order, a tensor per image.

        Args:
            values: `[B, S]` (received) or the tower's own shape with features last (keys, hidden).
            grids: of the images (or tiles) in tokens.
        """
        received = tap.kind == "received"
        values = values[..., None] if received else values
        patches = [grid.size * self.factor**2 for grid in grids]
        rows = per_image(values, patches, self.class_token_last)
        window = self.window
        found = [
            merge_patches(row, grid, self.factor, self.merge, window) for row, grid in zip(rows, grids, strict=True)
        ]
        return [value.squeeze(-1) for value in found] if received else found

    @property
    def window(self) -> int:
        """Side of the tower's attention windows in tokens, 0 if it has none."""
        vision = getattr(self.config, "vision_config", None)
        size = getattr(vision, "window_size", None)
        return size // side(vision.patch_size) // self.factor if size and self.merge == "windowed" else 0

    # -- reading the language model ----------------------------------------------------------------------

    def layer_attention(self, layer: int) -> nn.Module:
        """The module of a decoder layer that calls the attention function."""
        found = attention_of(self.parts.layers[layer])
        if found is None:
            raise MissingTapError(f"Decoder layer {layer} of '{self.name}' has no attention module that can be read.")
        return found

    @cached_property
    def axes(self) -> int:
        """Axes of multimodal positions."""
        rope = getattr(self.parts.text.config, "rope_parameters", None) or {}
        return len(rope.get("mrope_section") or (0, 0, 0)) if isinstance(rope, dict) else 3

    def rotary(self, hidden: Tensor, positions: Tensor) -> Any:
        """Rotary embeddings (cos, sin) of text positions `[B, n]`."""
        module: Any = self.parts.text.rotary_emb
        sections = getattr(self.parts.text.config, "rope_parameters", None) or {}
        if isinstance(sections, dict) and "mrope_section" in sections:
            positions = positions.expand(3, *positions.shape)
        return module(hidden, positions)


def _parameters(module: nn.Module) -> list[str]:
    return list(inspect.signature(type(module).forward).parameters)[1:]
