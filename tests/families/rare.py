"""Types whose images enter in ways of their own: framed by tokens, through towers of timm's, in strips."""

from __future__ import annotations

import torch
from transformers.models.fast_vlm import modeling_fast_vlm
from transformers.models.llava_next.modeling_llava_next import unpad_image
from transformers.models.perception_lm import modeling_perception_lm

from tests.families.conv_tower import timm_config, without_timm
from tests.families.tiny import (
    BOTH_IDS,
    END,
    IMAGE,
    IMAGE_IDS,
    START,
    VIDEO,
    Picture,
    add,
    clip_of_patches,
    noise,
    patches,
    run,
    square,
    text,
    tower,
)


def framed(h: int, w: int, random: torch.Generator) -> Picture:
    """A token before the image, one behind it, and one behind every row."""
    pixels = noise(random, 4 * h * w, 3 * 16 * 16)
    return run(h * (w + 1) + 2), {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 2 * h, 2 * w]])}


add(
    "hunyuan_vl",
    {
        "text_config": text(
            head_dim=16,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2, 2]},
        ),
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
            "patch_size": 16, "spatial_merge_size": 2, "out_hidden_size": 64, "max_image_size": 128,
            "text_hidden_size": 64,
        },
        "image_token_id": IMAGE,
    },
    framed, token_types="mm_token_type_ids",
)  # fmt: skip


def fast_vlm() -> object:
    without_timm(modeling_fast_vlm)
    return modeling_fast_vlm.FastVlmConfig(
        vision_config=timm_config(), text_config={"model_type": "qwen2", **text()}, **IMAGE_IDS
    )


def perception_lm() -> object:
    without_timm(modeling_perception_lm, flat=True)
    return modeling_perception_lm.PerceptionLMConfig(
        vision_config=timm_config(), text_config={"model_type": "llama", **text()}, projector_pooling_ratio=2,
        vision_use_cls_token=False, **BOTH_IDS,
    )  # fmt: skip


def perceived(h: int, w: int, random: torch.Generator) -> Picture:
    return run(4), {"pixel_values": noise(random, 1, 1, 3, 56, 56)}


add("fast_vlm", fast_vlm, square(16))


def perceived_clip(h: int, w: int, random: torch.Generator) -> Picture:
    return run(8, token=VIDEO), {"pixel_values_videos": noise(random, 1, 2, 3, 56, 56)}


add("perception_lm", perception_lm, perceived, video=perceived_clip)


def windows(h: int, w: int, random: torch.Generator) -> Picture:
    """An image of 112 x 90 pixels as LLaVA-NeXT cuts it, half as many tokens along each side."""
    size = (112, 90)
    _, rows, columns = unpad_image(torch.zeros(1, 4, 4), size).shape
    pixels = noise(random, 1, 5, 3, 56, 56)
    return run(4 + rows * (columns + 1)), {"pixel_values": pixels, "image_sizes": torch.tensor([size])}


add(
    "granite4_vision",
    {
        "vision_config": {"model_type": "siglip_vision_model", **tower(hidden_size=64)}, "text_config": text(),
        **IMAGE_IDS, "image_grid_pinpoints": [[112, 112]], "downsample_rate": "1/2", "image_seq_length": 4,
        "vision_feature_select_strategy": "full", "deepstack_layer_map": [[-2, 0], [-1, 2]],
        "spatial_target_layers": [1, 3, 4, 5], "projector_dropout": 0.0, "qformer_config": {
            "model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 48,
            "cross_attention_frequency": 1, "hidden_size": 64, "num_attention_heads": 4,
        },
    },
    windows,
)  # fmt: skip


def strips(tokens: int) -> object:
    """Images as strips of patches."""

    def make(h: int, w: int, random: torch.Generator) -> Picture:
        strip = noise(random, 1, 3, 16, 16 * 16 * 6)
        return run(tokens), {"pixel_values": strip, "target_sizes": torch.tensor([[8, 12]])}

    return make


def strips_of_frames(tokens: int) -> object:
    """Two frames as strips of patches, each between the marks of an image."""

    def make(h: int, w: int, random: torch.Generator) -> Picture:
        strip = noise(random, 1, 3, 16, 16 * 16 * 6 * 2)
        ids = [*run(tokens, token=VIDEO), *run(tokens, token=VIDEO)]
        return ids, {"pixel_values_videos": strip, "target_sizes_videos": torch.tensor([[8, 12], [8, 12]])}

    return make


LINEAR = {
    "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"] * 2,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.25,
    },
}  # fmt: skip
MINI = {
    "text_config": {"model_type": "qwen3_5_text", **text(**LINEAR)},
    "vision_config": {**tower(128, 16), "insert_layer_id": 1}, "insert_layer_id": 1, "image_size": 128, **BOTH_IDS,
}  # fmt: skip
MARKS = {
    "image_start_id": START, "image_end_id": END, "slice_start_id": 100, "slice_end_id": 101, "newline_id": 102,
}  # fmt: skip
ALONG = (("pixel_values", -1), ("pixel_values_videos", -1))
add("minicpmv4_6", MINI, strips(6), video=strips_of_frames(6), exact=False, joined_along=ALONG)
add(
    "minicpmv4_7", {**MINI, **MARKS}, strips(6), video=strips_of_frames(6), token_types="mm_token_type_ids",
    exact=False, joined_along=ALONG,
)  # fmt: skip
add("minicpm_ocr", MINI, strips(24), video=strips_of_frames(24), exact=False, joined_along=ALONG)  # merged once
GLIDING = ["sliding_attention", "sliding_attention", "full_attention"] * 2
add(
    "lfm3_vl",
    {
        "text_config": {
            "model_type": "lfm3",
            **text(head_dim=16, sliding_window=64, layer_types=["conv", "sliding_attention", "full_attention"] * 2),
        },
        "vision_config": {**tower(num_key_value_heads=1), "patch_size": 16}, "projector_hidden_size": 32, **BOTH_IDS,
    },
    patches(3 * 2 * 16 * 16), video=clip_of_patches(3 * 2 * 16 * 16, True), exact=False,
)  # fmt: skip
MUSE = {
    "vision_config": {**tower(), "pos_emb_height": 8, "pos_emb_width": 8},
    "projector_hidden_size": 32,
    "out_hidden_size": 128,
    **BOTH_IDS,
}
add(
    "muse_glimmer", {"text_config": text(head_dim=16, sliding_window=8, layer_types=GLIDING), **MUSE},
    patches(3 * 2 * 14 * 14), video=clip_of_patches(3 * 2 * 14 * 14, True),
)  # fmt: skip
add(
    "muse_spark",
    {
        "text_config": text(
            head_dim=16, sliding_window=8, layer_types=GLIDING, moe_intermediate_size=32, num_local_experts=4,
            num_experts_per_tok=2, moe_hidden_size=32, qk_scale_factor=1.0,
        ),
        "audio_config": {"hidden_sizes": [8, 8, 8, 64], "depths": [1, 1, 1, 1], "out_hidden_size": 64}, **MUSE,
    },
    patches(3 * 2 * 14 * 14), video=clip_of_patches(3 * 2 * 14 * 14, True),
)  # fmt: skip
