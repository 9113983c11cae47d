"""The tiny Qwen2.5-VL: stock classes, our sizes, our starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from foveate.scenes import SceneSpec, compose
from recipes.zoo import initialise
from recipes.zoo.batches import normalise
from recipes.zoo.config import ZooConfig
from recipes.zoo.forward import PATCH, WINDOW, encode, raster_order, to_windows
from recipes.zoo.tokenizer import SPECIAL

# A short RoPE base and sections for time, height and width: a tiny model sees short prompts.
ROPE = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [4, 6, 6]}
# Scale of each rotary pair at the start: slow ones carry content over a distance.
BAND = (0.3,) * 4 + (0.6,) * 6 + (1.2,) * 6


def text_settings(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What both families' text configurations share."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    return {
        "vocab_size": -(-len(tokenizer) // 16) * 16,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "bos_token_id": ids["<|im_start|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }


def configure(config: ZooConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """The stock configuration of the recipe."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    tower = {
        "out_hidden_size": config.text["hidden_size"],
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "in_channels": 3,
    }
    return Qwen2_5_VLConfig(
        text_config=text_settings(tokenizer) | {"rope_parameters": ROPE} | config.text,
        vision_config=tower | {k: list(v) if isinstance(v, tuple) else v for k, v in config.tower.items()},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def create(config: ZooConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLForConditionalGeneration:
    """An untrained model with the starts of `zoo.initialise`."""
    torch.manual_seed(config.seed)
    model = Qwen2_5_VLForConditionalGeneration(configure(config, tokenizer))
    tower = model.model.visual
    residual = [linear for block in tower.blocks for linear in (block.attn.proj, block.mlp.down_proj)]
    initialise.shrink_residuals(residual, len(tower.blocks))
    initialise.look_at_neighbours(tower)
    patches = to_windows(sample_pixels(48, 224)).flatten(0, 1)
    kernel = initialise.dct_patches(patches, tower.config.hidden_size, PATCH).view(-1, 3, 1, PATCH, PATCH)
    tower.patch_embed.proj.weight.data.copy_((kernel / 2).expand(-1, -1, 2, -1, -1))
    initialise.match_and_copy(model.model.language_model, BAND)
    return model


def sample_pixels(n: int, side: int) -> Tensor:
    """A few scenes to measure scales on: `[n, side, side, 3]`."""
    spec = SceneSpec(sizes=(((side, side), 1.0),))
    return normalise([compose(f"start:{i}", spec)[1] for i in range(n)])


def features(model: Any, pixels: Tensor) -> Tensor:
    """Pixels `[B, H, W, 3]` or pairs of frames `[B, H, W, 6]` -> merged features `[B, rows, columns, D]`."""
    return encode(model.model.visual, pixels)[0]


@dataclass
class Lesson:
    """What a tower that is to follow this one learns from.

    Attributes:
        features: merged features `[B, rows, columns, D]`.
        states: what enters each block and leaves the last, per 14 px patch `[B, P, width]` in raster order.
        attention: attention of each block `[B, heads, P, P]`, zero beyond a window; empty for images of more than
            224 x 224 px, for which it would cost more than the rest.
    """

    features: Tensor
    states: list[Tensor]
    attention: list[Tensor]


@torch.no_grad()
def teach(model: Any, pixels: Tensor) -> Lesson:
    """The lesson of pixels `[B, H, W, 3]`."""
    rows, columns = pixels.shape[1] // PATCH, pixels.shape[2] // PATCH
    merged, inside = encode(model.model.visual, pixels)
    order = raster_order(rows, columns)
    states = [state[:, order] for state in inside.states]
    maps = inside.attention if rows * columns <= 4 * WINDOW**2 else []
    return Lesson(merged, states, [_whole(a, len(pixels))[:, :, order][..., order] for a in maps])


def _whole(attention: Tensor, images: int) -> Tensor:
    """Attention within groups `[B * G, heads, g, g]` as one map an image, `[B, heads, G * g, G * g]`."""
    groups, (heads, size) = len(attention) // images, attention.shape[1:3]
    out = attention.new_zeros(images, heads, groups, size, groups, size)
    each = torch.arange(groups)
    out[:, :, each, :, each] = attention.view(images, groups, heads, size, size).transpose(0, 1)
    return out.view(images, heads, groups * size, groups * size)
