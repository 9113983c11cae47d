"""Published geometries as tables of numbers, to be filled with random weights: speed needs no checkpoint.

The numbers are those of the checkpoints' `config.json` (llava-hf/llava-1.5-*-hf with CLIP ViT-L/14 336 px,
Qwen/Qwen2.5-VL-*-Instruct). The two `mid` models are ours and run on a laptop's CPU in seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from foveate.errors import ConfigurationError

IMAGE_TOKEN, VISION_START, VISION_END = 10, 11, 12
"""Placeholder ids; random prompts draw their text from the ids above."""


@dataclass(frozen=True)
class Preset:
    """One row of the table. `vision` and `text` are arguments of the stock configuration classes.

    Attributes:
        family: model type.
        vision, text: numbers.
        tokens: visual tokens of a prompt unless the user says otherwise.
    """

    family: str
    vision: dict[str, Any]
    text: dict[str, Any]
    tokens: int


def _clip(layers: int, width: int, heads: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": heads,
        "patch_size": 14,
    }


def _tower(layers: int, width: int, mlp: int, heads: int, full: list[int]) -> dict[str, Any]:
    return {
        "depth": layers,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_heads": heads,
        "fullatt_block_indexes": full,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "window_size": 112,
    }


def _text(
    layers: int, width: int, mlp: int, heads: int, kv: int, words: int, theta: float = 1e4, **more: Any
) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": words,
        "max_position_embeddings": 32768,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta} | more,
    }


_CLIP_L = _clip(24, 1024, 16)
_QWEN_TOWER = _tower(32, 1280, 3420, 16, [7, 15, 23, 31])
PRESETS = {
    "llava-1.5-7b": Preset("llava", _CLIP_L, _text(32, 4096, 11008, 32, 32, 32064), 576),
    "llava-1.5-13b": Preset("llava", _CLIP_L, _text(40, 5120, 13824, 40, 40, 32064), 576),
    "qwen2.5-vl-3b": Preset(
        "qwen2_5_vl", _QWEN_TOWER, _text(36, 2048, 11008, 16, 2, 151936, 1e6, mrope_section=[16, 24, 24]), 1296
    ),
    "qwen2.5-vl-7b": Preset(
        "qwen2_5_vl", _QWEN_TOWER, _text(28, 3584, 18944, 28, 4, 152064, 1e6, mrope_section=[16, 24, 24]), 1296
    ),
    "mid-llava": Preset("llava", _clip(6, 256, 4), _text(12, 512, 1408, 8, 8, 1024), 576),
    "mid-qwen2.5-vl": Preset(
        "qwen2_5_vl", _tower(6, 256, 688, 4, [2, 5]), _text(12, 512, 1408, 8, 2, 1024, mrope_section=[8, 12, 12]), 576
    ),
}


def build(
    name: str,
    tokens: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    attention: str | None = None,
    seed: int = 0,
) -> Any:
    """The stock model of a preset with random weights, made directly on the device.

    Args:
        tokens: visual tokens per image; LLaVA's image size follows from it, so it must be a square there.

    Raises:
        ConfigurationError: unknown preset, or a number of tokens that its grid cannot have.
    """
    if name not in PRESETS:
        raise ConfigurationError(f"No preset is called {name!r}; there are {', '.join(PRESETS)}.")
    preset = PRESETS[name]
    config = _config(preset, tokens or preset.tokens)
    if attention is not None:
        config._attn_implementation = attention
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attention)
    finally:
        torch.set_default_dtype(before)
    return model.eval()


def _config(preset: Preset, tokens: int) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, Qwen2_5_VLConfig

    if preset.family == "llava":
        side = math.isqrt(tokens)
        if side * side != tokens:
            raise ConfigurationError(f"A LLaVA image has a square of visual tokens: {tokens} is none, {side**2} is.")
        vision = CLIPVisionConfig(**preset.vision, image_size=side * preset.vision["patch_size"])
        return LlavaConfig(
            vision_config=vision,
            text_config=LlamaConfig(**preset.text),
            image_token_id=IMAGE_TOKEN,
            image_seq_length=tokens,
        )
    return Qwen2_5_VLConfig(
        vision_config=preset.vision | {"out_hidden_size": preset.text["hidden_size"]},
        text_config=preset.text,
        image_token_id=IMAGE_TOKEN,
        video_token_id=9,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )
