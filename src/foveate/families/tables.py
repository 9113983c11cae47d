"""What cannot be probed: how each model type turns the patches of its tower into tokens of the language model."""

from __future__ import annotations

from typing import Any, Literal

Merge = Literal["raster", "units", "windowed", "unpad", "none"]
"""How patches become tokens: `raster` blocks of neighbouring patches (identity, pooling and pixel shuffle alike),
contiguous `units` of the tower's own order, the same in `windowed` order, tiles that are stitched, `unpad`ded and given
newlines, or `none`: a resampler mixes them all."""

MERGES: dict[str, Merge] = {
    **dict.fromkeys(
        (
            "llava", "vipllava", "video_llava", "paligemma", "shieldgemma2", "janus", "deepseek_vl", "internvl",
            "qianfan_ocr", "idefics3", "smolvlm", "aya_vision", "cohere2_vision", "ovis2", "llama4",
            "lfm2_vl", "paddleocr_vl", "gemma3", "gemma4", "mistral3", "lighton_ocr", "minicpmv4_6",
            "minicpmv4_7", "minicpm_ocr", "granite_docling",
            "muse_glimmer", "muse_spark", "hunyuan_vl", "kimi_k25",
        ),
        "raster",
    ),
    **dict.fromkeys(
        (
            "qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen4_exp", "qwen3_omni_moe_thinker",
            "cosmos3_omni", "glm4v", "glm46v", "glm4v_moe", "glm_ocr", "ernie4_5_vl_moe", "cohere_compass",
            "video_llama_3", "lfm3_vl", "minimax_m3_vl", "cosmos3_edge", "glmga",
        ),
        "units",
    ),
    **dict.fromkeys(("qwen2_5_vl", "qwen2_5_omni_thinker", "exaone4_5", "hyperclovax_vision_v2"), "windowed"),
    **dict.fromkeys(("llava_next", "llava_next_video", "llava_onevision"), "unpad"),
    **dict.fromkeys(("idefics2", "aria", "blip-2", "instructblip", "granite4_vision"), "none"),
}  # fmt: skip

TILED = frozenset(
    ("internvl", "qianfan_ocr", "idefics3", "smolvlm", "aya_vision", "cohere2_vision", "llama4",
     "got_ocr2", "pp_chart2table", "lfm2_vl", "ovis2", "granite_docling", "perception_lm")
)  # fmt: skip
"""Types whose tower and projector give a feature per *tile*; an image is all tiles up to the one that closes it."""

BY_ROW = frozenset(("idefics2", "idefics3", "smolvlm", "granite_docling"))
"""Types whose features come in one piece for each row of the batch, all tiles of all its images behind one another."""

RESAMPLED = frozenset(("idefics2", "aria"))
"""Types whose tokens are learned queries that have read the whole picture (or tile), so that they have no places."""

ENCODES_LATE = frozenset(("phi4_multimodal", "chameleon"))
"""Types whose language model encodes images itself, so that nothing of them is known before it runs."""

IN_FRAMES = frozenset(("video_llava", "perception_lm", "minicpmv4_6", "minicpmv4_7", "minicpm_ocr"))
"""Types whose videos come as a feature per frame."""

ENCODED_IN_FRAMES = frozenset(("glm4v", "glm46v", "glm4v_moe", "glm_ocr", "glmga", "gemma4", "gemma4_unified"))
"""Types whose tower is given a video's frames as images, of which one feature is made."""

ONE_TOKEN = frozenset(("glm4v", "glm46v", "glm4v_moe", "glm_ocr", "glmga", "molmo2"))
"""Types whose videos stand on the placeholder token of images."""

CLASS_TOKEN_LAST = frozenset(("llama4",))
"""Towers that put the class token behind the patches."""

TEXT_POSITIONS = ("cosmos3_edge", "hunyuan_vl", "minicpmv4_7", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")
"""Types whose stock `generate` gives the tokens of a later image the positions of text."""

FRAMED = ("hunyuan_vl",)
"""Types that put a token before the image, one behind every row and one behind the image."""

ALWAYS_TESTED = (
    "gemma3", "gemma4", "idefics3", "internvl", "llama4", "llava", "llava_next", "mistral3", "qwen2_vl", "qwen3_5",
    "qwen3_vl", "video_llava",
)  # fmt: skip
"""Types of which tiny models are tested on every run: one per kind of decoder and layout."""

TESTED = (
    "aria", "aya_vision", "chameleon", "cohere2_vision", "cohere_compass", "cosmos3_edge", "cosmos3_omni",
    "deepseek_ocr2", "deepseek_vl", "deepseek_vl_hybrid", "emu3", "ernie4_5_vl_moe", "exaone4_5", "fast_vlm", "fuyu",
    "gemma3n", "gemma4_unified", "glm46v", "glm4v", "glm4v_moe", "glm_ocr", "glmga", "got_ocr2", "granite4_vision",
    "granite_docling", "hunyuan_vl", "hyperclovax_vision_v2", "idefics2", "janus", "kimi_k25", "lfm2_vl", "lfm3_vl",
    "lighton_ocr", "llava_next_video", "llava_onevision", "minicpm_ocr", "minicpmv4_6", "minicpmv4_7",
    "minimax_m3_vl", "molmo2", "muse_glimmer", "muse_spark", "ovis2", "paddleocr_vl", "paligemma", "perception_lm",
    "phi4_multimodal", "pp_chart2table", "qianfan_ocr", "qwen2_5_omni_thinker", "qwen2_5_vl", "qwen3_5_moe",
    "qwen3_omni_moe_thinker", "qwen3_vl_moe", "shieldgemma2", "smolvlm", "step3p7", "video_llama_3", "vipllava",
)  # fmt: skip
"""Those that `make families` tests too."""

NEEDS_TORCHVISION = (
    "cohere2_vision", "gemma4_unified", "kimi_k25", "lfm2_vl", "llama4", "minicpm_ocr", "minimax_m3_vl", "molmo2",
    "muse_glimmer", "muse_spark", "perception_lm", "phi4_multimodal", "step3p7",
)  # fmt: skip
"""Types of which transformers has no image processor but one that needs torchvision."""

FACTORS = (
    ("vision_config", "spatial_merge_size"),
    ("", "spatial_merge_size"),
    ("", "scale_factor"),
    ("", "downsample_factor"),
    ("", "downsample_ratio"),
    ("vision_config", "pixel_shuffle_ratio"),
    ("vision_config", "hidden_stride"),
    ("vision_config", "scale_factor"),
    ("vision_config", "merge_size"),
    ("vision_config", "merge_kernel_size"),
    ("vision_config", "pooling_kernel_size"),
)
"""Where configurations say how many patches a token is wide: (sub-configuration, name)."""


def merge_factor(config: Any) -> int:
    """Patches per token along each side."""
    for part, name in FACTORS:
        value = getattr(getattr(config, part, None) if part else config, name, None)
        value = value[0] if isinstance(value, list | tuple) else value
        if isinstance(value, int | float) and value:
            return round(value if value >= 1 else 1 / value)
    tokens = getattr(config, "mm_tokens_per_image", None)  # Gemma 3 pools to a fixed number
    vision = getattr(config, "vision_config", None)
    if tokens and vision is not None:
        pooled: int = round(vision.image_size // vision.patch_size / tokens**0.5)
        return pooled
    return 1


def side(value: Any) -> int:
    """Patch and image sizes are numbers or pairs of equal numbers."""
    return int(value[0] if isinstance(value, list | tuple) else value)
