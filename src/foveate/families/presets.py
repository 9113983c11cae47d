"""Published geometries as tables of numbers, to be filled with random weights: speed needs no checkpoint.

The numbers are those of the checkpoints' `config.json` (llava-hf/llava-1.5-*-hf with CLIP ViT-L/14 336 px,
Qwen/Qwen2.5-VL-*-Instruct, Qwen/Qwen2-VL-7B-Instruct, Qwen/Qwen3-VL-8B-Instruct, llava-hf/llava-v1.6-vicuna-13b-hf,
llava-hf/llava-onevision-qwen2-7b-ov-hf, OpenGVLab/InternVL3-8B-hf, google/gemma-3-12b-it,
HuggingFaceTB/SmolVLM2-2.2B-Instruct). The two `mid` models are ours and run on a laptop's CPU in seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch

from foveate.errors import ConfigurationError

IMAGE_TOKEN, VISION_START, VISION_END, VIDEO_TOKEN = 10, 11, 12, 9
"""Placeholder ids; random prompts draw their text from the ids above."""

TOKENS = {
    "image_token_id": IMAGE_TOKEN,
    "image_token_index": IMAGE_TOKEN,
    "video_token_id": VIDEO_TOKEN,
    "video_token_index": VIDEO_TOKEN,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
    "boi_token_index": VISION_START,
    "eoi_token_index": VISION_END,
}
"""Special tokens, by all the names that configurations have for them."""


@dataclass(frozen=True)
class Preset:
    """One row of the table. `vision` and `text` are arguments of the stock configuration classes.

    Attributes:
        family: model type.
        vision, text: numbers.
        tokens: visual tokens of a prompt unless the user says otherwise.
        more: arguments beside these.
    """

    family: str
    vision: dict[str, Any]
    text: dict[str, Any]
    tokens: int
    more: dict[str, Any] = field(default_factory=dict)


def _vit(kind: str, layers: int, width: int, heads: int, mlp: int, image: int, patch: int = 14) -> dict[str, Any]:
    """A vision transformer for images of one size."""
    pairs = kind == "internvl_vision"
    return {
        "model_type": kind,
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "image_size": [image, image] if pairs else image,
        "patch_size": [patch, patch] if pairs else patch,
    }


def _tower(layers: int, width: int, heads: int, patch: int = 14, **more: Any) -> dict[str, Any]:
    """One of the Qwen line."""
    own = {"depth": layers, "hidden_size": width, "num_heads": heads, "patch_size": patch, "spatial_merge_size": 2}
    return own | more


def _windowed(layers: int, width: int, mlp: int, heads: int, full: list[int]) -> dict[str, Any]:
    return _tower(layers, width, heads, intermediate_size=mlp, fullatt_block_indexes=full, window_size=112)


def _text(
    kind: str, layers: int, width: int, mlp: int, heads: int, kv: int, words: int, theta: float = 1e4, **more: Any
) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": theta, **more.pop("rope", {})}
    return {
        "model_type": kind,
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
        "rope_parameters": rope,
        **more,
    }


def _mrope(*sections: int, **more: Any) -> dict[str, Any]:
    return {"mrope_section": list(sections), **more}


def _qwen2(words: int, **more: Any) -> dict[str, Any]:
    """The 7B of Qwen 2 and 2.5."""
    return _text(more.pop("kind", "qwen2"), 28, 3584, 18944, 28, 4, words, 1e6, **more)


_CLIP_L = _vit("clip_vision_model", 24, 1024, 16, 4096, 336)
_MID_CLIP = _vit("clip_vision_model", 6, 256, 4, 1024, 336)
_QWEN_TOWER = _windowed(32, 1280, 3420, 16, [7, 15, 23, 31])
_SQUARES = [list(pair) for pair in product(range(384, 2305, 384), repeat=2)]
_OV_SIGLIP = _vit("siglip_vision_model", 26, 1152, 16, 4304, 384) | {"vision_use_head": False}
_GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
PRESETS = {
    "llava-1.5-7b": Preset("llava", _CLIP_L, _text("llama", 32, 4096, 11008, 32, 32, 32064), 576),
    "llava-1.5-13b": Preset("llava", _CLIP_L, _text("llama", 40, 5120, 13824, 40, 40, 32064), 576),
    "llava-next-13b": Preset(
        "llava_next", _CLIP_L, _text("llama", 40, 5120, 13824, 40, 40, 32064), 2928,
        {"image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]},
    ),
    "llava-onevision-7b": Preset(
        "llava_onevision", _OV_SIGLIP, _qwen2(152000), 3699,
        {
            "image_grid_pinpoints": _SQUARES, "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9",
        },
    ),
    "qwen2-vl-7b": Preset(
        "qwen2_vl", {**_tower(32, 3584, 16), "embed_dim": 1280, "mlp_ratio": 4},
        _qwen2(152064, kind="qwen2_vl_text", rope=_mrope(16, 24, 24)), 1296,
    ),
    "qwen2.5-vl-3b": Preset(
        "qwen2_5_vl", _QWEN_TOWER | {"out_hidden_size": 2048},
        _text("qwen2_5_vl_text", 36, 2048, 11008, 16, 2, 151936, 1e6, rope=_mrope(16, 24, 24)), 1296,
        {"tie_word_embeddings": True},
    ),
    "qwen2.5-vl-7b": Preset(
        "qwen2_5_vl", _QWEN_TOWER | {"out_hidden_size": 3584},
        _qwen2(152064, kind="qwen2_5_vl_text", rope=_mrope(16, 24, 24)), 1296,
    ),
    "qwen3-vl-8b": Preset(
        "qwen3_vl",
        _tower(
            27, 1152, 16, 16, intermediate_size=4304, out_hidden_size=4096, num_position_embeddings=2304,
            deepstack_visual_indexes=[8, 16, 24],
        ),
        _text(
            "qwen3_vl_text", 36, 4096, 12288, 32, 8, 151936, 5e6, head_dim=128,
            rope=_mrope(24, 20, 20, mrope_interleaved=True),
        ),
        1296,
    ),
    "internvl3-8b": Preset(
        "internvl", _vit("internvl_vision", 24, 1024, 16, 4096, 448) | {"attention_bias": True}, _qwen2(151674), 1792,
        {"downsample_ratio": 0.5, "image_seq_length": 256, "tie_word_embeddings": False},
    ),
    "gemma3-12b": Preset(
        "gemma3", _vit("siglip_vision_model", 27, 1152, 16, 4304, 896) | {"vision_use_head": False},
        _text(
            "gemma3_text", 48, 3840, 15360, 16, 8, 262208, head_dim=256, sliding_window=1024,
            query_pre_attn_scalar=256, rope_parameters=_GEMMA_ROPE,
        ),
        256, {"mm_tokens_per_image": 256},
    ),
    "smolvlm-2b": Preset(
        "smolvlm", _vit("smolvlm_vision", 27, 1152, 16, 4304, 384),
        _text("llama", 24, 2048, 8192, 32, 32, 49280, 1.3e5), 1377, {"scale_factor": 3, "pad_token_id": 0},
    ),
    "mid-llava": Preset("llava", _MID_CLIP, _text("llama", 12, 512, 1408, 8, 8, 1024), 576),
    "mid-qwen2.5-vl": Preset(
        "qwen2_5_vl", _windowed(6, 256, 688, 4, [2, 5]) | {"out_hidden_size": 512},
        _text("qwen2_5_vl_text", 12, 512, 1408, 8, 2, 1024, rope=_mrope(8, 12, 12)), 576,
    ),
}  # fmt: skip


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
    config = configuration(preset, tokens or preset.tokens)
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


def configuration(preset: Preset, tokens: int) -> Any:
    """The stock configuration of a preset.

    Raises:
        ConfigurationError: LLaVA's tokens are a square.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    vision, more = dict(preset.vision), dict(preset.more)
    if preset.family == "llava":
        side = math.isqrt(tokens)
        if side * side != tokens:
            raise ConfigurationError(f"A LLaVA image has a square of visual tokens: {tokens} is none, {side**2} is.")
        vision["image_size"], more["image_seq_length"] = side * vision["patch_size"], tokens
    return CONFIG_MAPPING[preset.family](vision_config=vision, text_config=dict(preset.text), **TOKENS, **more)
