"""Prompts to measure with: random ones of a given size, or a real image with a question."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from foveate.errors import ConfigurationError

TEXT_TOKENS = 40
"""Text tokens around the image of a random prompt, as in a short question with its chat template."""


def random_prompt(model: Any, tokens: int, batch: int = 1, text: int = TEXT_TOKENS, seed: int = 0) -> dict[str, Tensor]:
    """Inputs with one image of random pixels per row and random text, on the model's device and in its dtype.

    Args:
        tokens: visual tokens of the image.

    Raises:
        ConfigurationError: the model cannot have an image of that many tokens.
    """
    config = model.config
    random = torch.Generator().manual_seed(seed)
    words = config.get_text_config().vocab_size
    ids = torch.randint(16, words, (batch, text), generator=random)
    special = [config.image_token_id]
    if config.model_type == "qwen2_5_vl":
        start, end = config.vision_start_token_id, config.vision_end_token_id
        special += [start, end, config.video_token_id]
    ids[torch.isin(ids, torch.tensor(special))] = 15  # text must not look like an image
    image = [config.image_token_id] * tokens
    if config.model_type == "qwen2_5_vl":
        image = [start, *image, end]
    middle = torch.tensor(image).expand(batch, -1)
    ids = torch.cat([ids[:, : text // 4], middle, ids[:, text // 4 :]], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | _pixels(config, tokens, batch, random)
    if config.model_type == "qwen2_5_vl":
        inputs["mm_token_type_ids"] = (ids == config.image_token_id).int()
    dtype = next(model.parameters()).dtype
    return {k: v.to(model.device, dtype if v.is_floating_point() else v.dtype) for k, v in inputs.items()}


def _pixels(config: Any, tokens: int, batch: int, random: torch.Generator) -> dict[str, Tensor]:
    vision = config.vision_config
    if config.model_type == "llava":
        fits = (vision.image_size // vision.patch_size) ** 2
        if tokens != fits:
            raise ConfigurationError(
                f"This LLaVA's images have {fits} visual tokens, not {tokens}; leave --tokens out."
            )
        size = (batch, vision.num_channels, vision.image_size, vision.image_size)
        return {"pixel_values": torch.randn(size, generator=random)}
    h, w = nearly_square(tokens)
    merge = vision.spatial_merge_size
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return {
        "pixel_values": torch.randn(batch * tokens * merge**2, values, generator=random),
        "image_grid_thw": torch.tensor([[1, merge * h, merge * w]] * batch),
    }


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
    vision = model.config.vision_config
    return (vision.image_size // vision.patch_size) ** 2 if model.config.model_type == "llava" else 576
