"""Types with patches in rows and a grid: the Qwen, GLM, Ernie and Kimi lines."""

from __future__ import annotations

import torch

from tests.families.tiny import (
    AUDIO,
    BOTH_IDS,
    END,
    FILM,
    FILM_END,
    IMAGE_IDS,
    START,
    VIDEO,
    Maker,
    Picture,
    add,
    clip_of_patches,
    noise,
    patches,
    run,
    text,
)  # fmt: skip

P14, P16 = 3 * 2 * 14 * 14, 3 * 2 * 16 * 16
TYPES = "mm_token_type_ids"
IDS = {**BOTH_IDS, "vision_start_token_id": START, "vision_end_token_id": END}


def rope(*sections: int, **more: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections), **more}}


def timed(values: int) -> Maker:
    """Videos that say how long a step in time takes."""
    clip = clip_of_patches(values, False)

    def make(h: int, w: int, random: torch.Generator) -> Picture:
        ids, tensors = clip(h, w, random)
        return ids, tensors | {"video_second_per_grid": torch.tensor([1.0])}

    return make


MROPE = rope(2, 3, 3)
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
TOWER = {
    "depth": 4, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2,
    "out_hidden_size": 64,
}  # fmt: skip
WINDOWED = {**TOWER, "window_size": 56, "fullatt_block_indexes": [1, 3]}
DEEP = {**TOWER, "patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2]}
PLAIN16 = {k: v for k, v in DEEP.items() if k != "deepstack_visual_indexes"}
LINEAR = {
    "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"] * 2,
    **rope(1, 1, 0, partial_rotary_factor=0.25, mrope_interleaved=True),
}  # fmt: skip
HEARING = {
    "encoder_layers": 1, "d_model": 32, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "output_dim": 64,
    "n_window": 4,
}  # fmt: skip
SLIDING = ["sliding_attention", "sliding_attention", "full_attention"] * 2

add(
    "qwen2_vl",
    {
        "text_config": text(**MROPE),
        "vision_config": {
            "depth": 4, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14,
            "spatial_merge_size": 2,
        },
        **IDS,
    },
    patches(P14), video=clip_of_patches(P14, False), token_types=TYPES,
)  # fmt: skip
add(
    "qwen2_5_vl", {"text_config": text(**MROPE), "vision_config": WINDOWED, **IDS},
    patches(P14), video=clip_of_patches(P14, False), token_types=TYPES,
)  # fmt: skip
add(
    "qwen3_vl", {"text_config": text(head_dim=16, **MROPE), "vision_config": DEEP, **IDS},
    patches(P16), video=clip_of_patches(P16, True), token_types=TYPES,
)  # fmt: skip
add(
    "qwen3_vl_moe", {"text_config": text(head_dim=16, **MOE, **MROPE), "vision_config": DEEP, **IDS},
    patches(P16), video=clip_of_patches(P16, True), token_types=TYPES,
)  # fmt: skip
for name, extra in (
    ("qwen3_5", {}), ("qwen3_5_moe", {**MOE, "shared_expert_intermediate_size": 32}),
):  # fmt: skip
    add(
        name, {"text_config": text(**LINEAR, **extra), "vision_config": PLAIN16, **IDS},
        patches(P16), video=clip_of_patches(P16, True), token_types=TYPES, exact=False,
    )  # fmt: skip
add(
    "qwen2_5_omni_thinker",
    {
        "text_config": text(**MROPE), "vision_config": WINDOWED, "audio_config": HEARING, **IMAGE_IDS, **IDS,
        "video_token_index": VIDEO, "audio_token_index": AUDIO,
    },
    patches(P14), video=timed(P14),
)  # fmt: skip
add(
    "qwen3_omni_moe_thinker",
    {
        "text_config": text(head_dim=16, **MOE, **MROPE), "vision_config": DEEP,
        "audio_config": {**HEARING, "downsample_hidden_size": 8}, **IDS,
    },
    patches(P16), video=timed(P16),
)  # fmt: skip
add(
    "cosmos3_omni",
    {
        "text_config": {"model_type": "qwen3_vl_text", **text(head_dim=16, **MROPE)},
        "vision_config": {"model_type": "qwen3_vl", **DEEP}, **IDS,
    },
    patches(P16), video=clip_of_patches(P16, True), token_types=TYPES,
)  # fmt: skip
add(
    "cosmos3_edge",
    {
        "text_config": text(head_dim=16, **MROPE),
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2,
            "patch_size": 16, "num_patches": 64, "spatial_merge_size": 2,
        },
        "projector_hidden_size": 64, **IDS,
    },
    patches(768), video=clip_of_patches(768, True), token_types=TYPES,
)  # fmt: skip
add(
    "exaone4_5",
    {
        "text_config": {
            "model_type": "exaone4",
            **text(sliding_window=8, sliding_window_pattern=3, layer_types=SLIDING, head_dim=16),
        },
        "vision_config": {**WINDOWED, "num_key_value_heads": 1}, **BOTH_IDS,
    },
    patches(P14), video=clip_of_patches(P14, False),
)  # fmt: skip
add(
    "hyperclovax_vision_v2",
    {
        "text_config": {"model_type": "hyperclovax", **text(head_dim=16)},
        "vision_config": {"model_type": "qwen2_5_vl", **WINDOWED}, **BOTH_IDS,
    },
    patches(P14), video=clip_of_patches(P14, False),
)  # fmt: skip
add(
    "cohere_compass",
    {
        "text_config": text(
            head_dim=16, sliding_window=8, layer_types=SLIDING,
            rope_parameters=dict.fromkeys(("full_attention", "sliding_attention"), MROPE["rope_parameters"]),
        ),
        "vision_config": DEEP, **IDS,
    },
    patches(P16), video=clip_of_patches(P16, True), token_types=TYPES,
)  # fmt: skip

GLM_TOWER = {
    "depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 14, "image_size": 56,
    "spatial_merge_size": 2, "out_hidden_size": 64,
}  # fmt: skip
GLM_IDS = {
    **BOTH_IDS, "image_start_token_id": START, "image_end_token_id": END, "video_start_token_id": FILM,
    "video_end_token_id": FILM_END,
}  # fmt: skip
GLM_ROPE = rope(2, 1, 1, partial_rotary_factor=0.5)
ROUTED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip


def film(h: int, w: int, random: torch.Generator) -> Picture:
    """Frames on the token of images, a time stamp behind each."""
    _, tensors = clip_of_patches(P14, True)(h, w, random)
    frames = [t for frame in range(2) for t in (*run(h * w), 30 + frame)]
    return [FILM, *frames, FILM_END], tensors


# their stock code repeats image by image for beams, which mixes up rows of more than one image
add(
    "glm4v", {"text_config": text(**GLM_ROPE), "vision_config": GLM_TOWER, **GLM_IDS},
    patches(P14), video=film, token_types=TYPES, beams=False, on_image_token=True,
)  # fmt: skip
for name in ("glm46v", "glmga"):
    add(
        name,
        {
            "text_config": {"model_type": "glm4v_text", **text(**GLM_ROPE)},
            "vision_config": {"model_type": "glm4v_vision", **GLM_TOWER}, **GLM_IDS,
        },
        patches(P14), video=film, token_types=TYPES, beams=False, on_image_token=True,
    )  # fmt: skip
add(
    "glm4v_moe", {"text_config": text(head_dim=16, **ROUTED, **GLM_ROPE), "vision_config": GLM_TOWER, **GLM_IDS},
    patches(P14), video=film, token_types=TYPES, beams=False, on_image_token=True,
)  # fmt: skip
add(
    "glm_ocr",
    {
        "text_config": text(head_dim=16, **rope(4, 2, 2, partial_rotary_factor=1.0)), "vision_config": GLM_TOWER,
        **GLM_IDS,
    },
    patches(P14), video=film, token_types=TYPES, beams=False, on_image_token=True,
)  # fmt: skip


def merged_in_pairs(h: int, w: int, random: torch.Generator) -> Picture:
    """Four frames, tokens for two."""
    _, tensors = clip_of_patches(3 * 14 * 14, False, frames=4)(h, w, random)
    return run(2 * h * w, token=VIDEO), tensors


add(
    "ernie4_5_vl_moe",
    {
        "text_config": text(
            moe_intermediate_size=[32, 16], moe_num_experts=4, moe_k=2, moe_num_shared_experts=1,
            mlp_layer_types=["dense"] + ["sparse"] * 5, **rope(3, 3, 2),
        ),
        "vision_config": {
            "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 14,
            "spatial_merge_size": 2,
        },
        **BOTH_IDS, "image_start_token_id": START, "image_end_token_id": END,
    },
    patches(3 * 14 * 14), video=merged_in_pairs, token_types=TYPES,
)  # fmt: skip
add(
    "paddleocr_vl",
    {
        "text_config": text(head_dim=16, **MROPE),
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
            "patch_size": 14, "image_size": 56,
        },
        **IDS,
    },
    patches(588, patch=(3, 14, 14)), token_types=TYPES,
)  # fmt: skip


def video_llama(h: int, w: int, random: torch.Generator) -> Picture:
    grid = torch.tensor([[1, 2 * h, 2 * w]])
    pixels = noise(random, 4 * h * w, 588)
    return run(h * w), {"pixel_values": pixels, "image_grid_thw": grid, "image_merge_sizes": torch.tensor([2])}


def video_llama_clip(h: int, w: int, random: torch.Generator) -> Picture:
    ids, tensors = clip_of_patches(588, True)(h, w, random)
    return ids, tensors | {"video_merge_sizes": torch.tensor([2])}


add(
    "video_llama_3",
    {
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2,
            "patch_size": 14,
        },
        "text_config": {"model_type": "qwen2", **text()}, **BOTH_IDS,
    },
    video_llama, video=video_llama_clip,
)  # fmt: skip
MLA = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, **ROUTED,
    "num_key_value_heads": 4,
}  # fmt: skip
add(
    "kimi_k25",
    {
        "text_config": {"model_type": "deepseek_v3", **text() | MLA},
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
            "patch_size": 14, "pos_emb_height": 8, "pos_emb_width": 8, "merge_kernel_size": [2, 2],
        },
        "projection_hidden_size": 32, **BOTH_IDS,
    },
    patches(588, patch=(3, 14, 14)),
)  # fmt: skip
add(
    "minimax_m3_vl",
    {
        "text_config": text(head_dim=16, num_local_experts=4, num_experts_per_tok=2),
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
            "patch_size": 14, "spatial_merge_size": 2,
        },
        **IMAGE_IDS, **BOTH_IDS, "video_token_index": VIDEO,
    },
    patches(P14), video=clip_of_patches(P14, True),
)  # fmt: skip
