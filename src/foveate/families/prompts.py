"""Prompts to measure with: random ones of a given size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from foveate.errors import ConfigurationError
from foveate.families import adapt
from foveate.families.base import Family
from foveate.families.tables import TILED, merge_factor, side
from foveate.families.unpadded import Unpadded

TEXT_TOKENS = 40
"""Text tokens around the image of a random prompt, as in a short question with its chat template."""

SPECIAL = ("vision_start_token_id", "vision_end_token_id", "boi_token_index", "eoi_token_index", "pad_token_id")

Maker = Callable[[Family, int, int, torch.Generator], dict[str, Tensor]]
"""Makes the pixels of one image per row: (family, tokens of an image, rows, random numbers)."""


def random_prompt(model: Any, tokens: int, batch: int = 1, text: int = TEXT_TOKENS, seed: int = 0) -> dict[str, Tensor]:
    """Inputs with one image of random pixels per row and random text, on the model's device and in its dtype.

    Args:
        tokens: visual tokens of the image.

    Raises:
        ConfigurationError: the model cannot have an image of that many tokens, or none is known how to make.
    """
    family = adapt(model)
    config, random = family.config, torch.Generator().manual_seed(seed)
    pixels = _maker(family)(family, tokens, batch, random)
    words, image = config.get_text_config().vocab_size, family.token_ids["image"]
    ids = torch.randint(16, words, (batch, text), generator=random)
    special = [*family.token_ids.values(), *(getattr(config, name, None) for name in SPECIAL)]
    ids[torch.isin(ids, torch.tensor([token for token in special if isinstance(token, int)]))] = 15  # is no image
    start, end = (getattr(config, f"vision_{name}_token_id", None) for name in ("start", "end"))
    middle = [token for token in (start, *[image] * tokens, end) if token is not None]
    ids = torch.cat([ids[:, : text // 4], torch.tensor(middle).expand(batch, -1), ids[:, text // 4 :]], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in family.arguments:
            inputs[name] = (ids == image).int()
    dtype = next(model.parameters()).dtype
    return {k: v.to(model.device, dtype if v.is_floating_point() else v.dtype) for k, v in inputs.items()}


def _maker(family: Family) -> Maker:
    if isinstance(family, Unpadded):
        return _stitched
    if "image_grid_thw" in family.arguments and family.merge in ("units", "windowed"):
        return _patches
    tiled = family.name in TILED and family.merge != "none"
    if tiled or family.name in ("llava", "vipllava", "gemma3", "paligemma"):
        return _tiles
    raise ConfigurationError(
        f"How a random image of '{family.name}' is made is not known; measure on a real one (--image)."
    )


def _patches(family: Family, tokens: int, batch: int, random: torch.Generator) -> dict[str, Tensor]:
    """Rows of patches with a grid."""
    vision, merge = family.config.vision_config, family.factor
    h, w = nearly_square(tokens)
    values = 3 * getattr(vision, "temporal_patch_size", 1) * vision.patch_size**2
    return {
        "pixel_values": torch.randn(batch * tokens * merge**2, values, generator=random),
        "image_grid_thw": torch.tensor([[1, merge * h, merge * w]] * batch),
    }


def _tiles(family: Family, tokens: int, batch: int, random: torch.Generator) -> dict[str, Tensor]:
    """Squares of one size, several of which may make an image."""
    one, pixels = tile_tokens(family), side(family.config.vision_config.image_size)
    many = family.name in TILED
    if tokens % one or (tokens != one and not many):
        wanted = f"a multiple of {one}" if many else f"{one}"
        raise ConfigurationError(
            f"An image of this model ('{family.name}') has {wanted} visual tokens, not {tokens}; leave --tokens out."
        )
    shape: tuple[int, ...] = (batch * tokens // one, 3, pixels, pixels)
    if family.name in ("idefics3", "smolvlm"):  # rows of images
        shape = (batch, tokens // one, 3, pixels, pixels)
    return {"pixel_values": torch.randn(shape, generator=random)}


def tile_tokens(family: Family) -> int:
    """Visual tokens of a square image, or of a tile."""
    vision = family.config.vision_config
    return int((side(vision.image_size) // side(vision.patch_size) // merge_factor(family.config)) ** 2)


def _stitched(family: Family, tokens: int, batch: int, random: torch.Generator) -> dict[str, Tensor]:
    """A thumbnail and tiles that are stitched together."""
    sizes = family.config.image_grid_pinpoints
    for height, width in sizes:
        size = torch.tensor([[height, width]])
        given = {"pixel_values": torch.empty(0), "image_sizes": size}
        if family.incoming(given)["image"][0].size == tokens:
            tile = side(family.config.vision_config.image_size)
            tiles = 1 + height * width // tile**2
            pixels = torch.randn(batch, tiles, 3, tile, tile, generator=random)
            return {"pixel_values": pixels, "image_sizes": size.expand(batch, -1)}
    found = {
        family.incoming({"pixel_values": torch.empty(0), "image_sizes": torch.tensor([pair])})["image"][0].size
        for pair in sizes
    }
    possible = ", ".join(map(str, sorted(found)))
    raise ConfigurationError(
        f"An image of this model ('{family.name}') that fills its tiles has {possible} visual tokens, not {tokens}."
    )


def nearly_square(tokens: int) -> tuple[int, int]:
    """Height and width with this product, as near to a square as the number's divisors allow.

    Raises:
        ConfigurationError: only a strip would fit.
    """
    height = next(h for h in range(math.isqrt(tokens), 0, -1) if tokens % h == 0)
    if tokens // height > 8 * height:
        near = math.isqrt(tokens) ** 2
        raise ConfigurationError(f"{tokens} visual tokens make no sensible grid; {near} do, for example.")
    return height, tokens // height


def default_tokens(model: Any) -> int:
    """Visual tokens of a random prompt unless the user says otherwise."""
    family = adapt(model)
    if isinstance(family, Unpadded):
        sizes = torch.tensor([family.config.image_grid_pinpoints[0]])
        return family.incoming({"pixel_values": torch.empty(0), "image_sizes": sizes})["image"][0].size
    return tile_tokens(family) if _maker(family) is _tiles else 576
