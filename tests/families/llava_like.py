"""Types with square images or tiles: the LLaVA, Gemma, Idefics, Pixtral, DeepSeek and InternVL lines."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from transformers.models.llava_next.modeling_llava_next import unpad_image

from tests.families.tiny import (
    BREAK,
    CLIP,
    END,
    IMAGE,
    IMAGE_IDS,
    LLAMA,
    QWEN2,
    SIGLIP,
    START,
    VIDEO,
    Picture,
    add,
    noise,
    run,
    square,
    text,
    tower,
)  # fmt: skip

VIDEO_IDS = {"video_token_index": VIDEO, "video_token_id": VIDEO}
SLIDING = ["sliding_attention", "sliding_attention", "full_attention"] * 2
MISTRAL = {"model_type": "mistral", **text(sliding_window=None)}
COHERE2 = {"model_type": "cohere2", **text(sliding_window=8)}
QWEN3 = {"model_type": "qwen3", **text(head_dim=16)}


def tiles(h: int, w: int, random: torch.Generator) -> Picture:
    """An image of 112 x 90 pixels, or one of 50 x 112 if it is wide: a thumbnail and 2 x 2 or 1 x 2 tiles, unpadded, a
    newline behind every row; padding behind the tiles of the second."""
    size, down = ((50, 112), 1) if w > h else ((112, 90), 2)
    _, rows, columns = unpad_image(torch.zeros(1, 4 * down, 8), size).shape
    pixels = noise(random, 1, 5, 3, 56, 56)
    pixels[:, 2 * down + 1 :] = 0
    return run(16 + rows * (columns + 1)), {"pixel_values": pixels, "image_sizes": torch.tensor([size])}


def frames(tokens: int, number: int = 2) -> object:
    def make(h: int, w: int, random: torch.Generator) -> Picture:
        return run(tokens, token=VIDEO), {"pixel_values_videos": noise(random, 1, number, 3, 56, 56)}

    return make


LLAVA = {"vision_config": CLIP, "text_config": LLAMA, **IMAGE_IDS, "image_seq_length": 16}
NEXT = {**LLAVA, "image_grid_pinpoints": [[112, 112], [56, 112]]}
add("llava", LLAVA, square(16))
add("vipllava", {**LLAVA, "vision_feature_layers": [-2, -1]}, square(16))
add("llava_next", NEXT, tiles)
add("llava_next_video", {**NEXT, **VIDEO_IDS, "spatial_pool_stride": 2}, tiles, video=frames(2 * 4))
add(
    "llava_onevision",
    {
        "vision_config": SIGLIP, "text_config": QWEN2, **IMAGE_IDS, **VIDEO_IDS,
        "image_grid_pinpoints": [[112, 112], [56, 112]], "vision_feature_layer": -1,
    },
    tiles, video=frames(2 * 4 + 1),
)  # fmt: skip


def video_llava(h: int, w: int, random: torch.Generator) -> Picture:
    return run(17), {"pixel_values_images": noise(random, 1, 3, 56, 56)}


add(
    "video_llava",
    {
        **LLAVA, **VIDEO_IDS, "image_seq_length": 17, "video_seq_length": 136, "vision_feature_select_strategy": "full",
    },
    video_llava, video=frames(17 * 8, 8), frames=8,
)  # fmt: skip

INTERN = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2,
    "image_size": [112, 112], "patch_size": [14, 14],
}  # fmt: skip


def intern_tiles(h: int, w: int, random: torch.Generator) -> Picture:
    """Two tiles and a thumbnail in one run."""
    return run(3 * 16), {"pixel_values": noise(random, 3, 3, 112, 112)}


add(
    "internvl", {"vision_config": INTERN, "text_config": QWEN2, "image_token_id": IMAGE, "image_seq_length": 16},
    intern_tiles,
)  # fmt: skip
add("qianfan_ocr", {"vision_config": INTERN, "text_config": QWEN3, "image_token_id": IMAGE}, square(16, 112))
GEMMA3 = {
    "vision_config": SIGLIP,
    "text_config": text(head_dim=16, sliding_window=8, layer_types=SLIDING, query_pre_attn_scalar=16),
    **IMAGE_IDS, "boi_token_index": START, "eoi_token_index": END, "mm_tokens_per_image": 16,
}  # fmt: skip
for name in ("gemma3", "shieldgemma2"):
    add(name, GEMMA3, square(16), token_types="token_type_ids")
add(
    "paligemma",
    {
        "vision_config": SIGLIP, "text_config": {"model_type": "gemma", **text(head_dim=16)}, **IMAGE_IDS,
        "projection_dim": 64,
    },
    square(16), token_types="token_type_ids",
)  # fmt: skip

IDEFICS = tower()


def two_tiles(tokens: int) -> object:
    """A tile, and the whole image behind a token that says so."""

    def make(h: int, w: int, random: torch.Generator) -> Picture:
        ids = [BREAK, 125, *[IMAGE] * tokens, BREAK, 127, *[IMAGE] * tokens, BREAK]
        seen = torch.ones(1, 2, 56, 56, dtype=torch.long)
        return ids, {"pixel_values": noise(random, 1, 2, 3, 56, 56), "pixel_attention_mask": seen}

    return make


def two_real_tiles(h: int, w: int, random: torch.Generator) -> Picture:
    ids, _ = two_tiles(4)(h, w, random)
    seen = torch.ones(1, 2, dtype=torch.bool)
    return ids, {"pixel_values": noise(random, 1, 2, 3, 112, 112), "pixel_attention_mask": seen}


for name in ("idefics3", "smolvlm"):
    add(
        name,
        {
            "vision_config": IDEFICS, "text_config": LLAMA, "image_token_id": IMAGE, "scale_factor": 2,
            "pad_token_id": 0,
        },
        two_tiles(4), by_row=True,
    )  # fmt: skip
add(
    "granite_docling",
    {
        "vision_config": {**tower(112), "out_hidden_size": 64, "scale_factor": 4}, "text_config": text(head_dim=16),
        "image_token_id": IMAGE, "pad_token_id": 0,
    },
    two_real_tiles, by_row=True,
)  # fmt: skip
add(
    "idefics2",
    {
        "vision_config": IDEFICS,
        "perceiver_config": {
            "hidden_size": 64, "resampler_n_latents": 5, "resampler_depth": 2, "resampler_n_heads": 2,
            "resampler_head_dim": 8, "num_key_value_heads": 1,
        },
        "text_config": MISTRAL, "image_token_id": IMAGE,
    },
    two_tiles(5), by_row=True,
)  # fmt: skip
PIXTRAL = {
    "model_type": "pixtral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 2, "image_size": 112, "patch_size": 14, "head_dim": 16,
}  # fmt: skip


def rows_of(side: int, canvas: int, breaks: bool = True) -> object:
    """Images of any size in a square canvas, a run of tokens per row."""

    def make(h: int, w: int, random: torch.Generator) -> Picture:
        ids = [START]
        for row in range(h):
            ids += [IMAGE] * w + ([BREAK if row < h - 1 else 125] if breaks else [])
        pixels = F.pad(noise(random, 1, 3, side * h, side * w), (0, canvas - side * w, 0, canvas - side * h))
        return ids, {"pixel_values": pixels, "image_sizes": torch.tensor([[side * h, side * w]])}

    return make


PIX = {"vision_config": PIXTRAL, **IMAGE_IDS, "vision_feature_layer": -1}
add(
    "llava", {**PIX, "text_config": MISTRAL, "vision_feature_select_strategy": "full"}, rows_of(14, 56),
    name="llava_pixtral",
)  # fmt: skip
add("mistral3", {**PIX, "text_config": MISTRAL, "spatial_merge_size": 2}, rows_of(28, 112))
add(
    "lighton_ocr",
    {"vision_config": PIXTRAL, "text_config": QWEN3, "image_token_id": IMAGE, "spatial_merge_size": 2},
    rows_of(28, 112, breaks=False),
)  # fmt: skip
add(
    "aya_vision",
    {
        "vision_config": SIGLIP, "text_config": COHERE2, **IMAGE_IDS, "downsample_factor": 2,
        "adapter_layer_norm_eps": 1e-6, "alignment_intermediate_size": 64, "vision_feature_select_strategy": "full",
        "vision_feature_layer": -1,
    },
    square(4),
)  # fmt: skip
add(
    "cohere2_vision",
    {
        "vision_config": SIGLIP, "text_config": COHERE2, "image_token_id": IMAGE, "downsample_factor": 2,
        "alignment_intermediate_size": 64,
    },
    square(4),
)  # fmt: skip
SAM = {
    "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 128,
    "patch_size": 16, "mlp_dim": 32, "window_size": 4, "global_attn_indexes": [1],
}  # fmt: skip
add("got_ocr2", {"vision_config": SAM, "text_config": QWEN2, **IMAGE_IDS, "image_seq_length": 4}, square(4, 128))
add("pp_chart2table", {"vision_config": SAM, "text_config": QWEN2, **IMAGE_IDS, "image_seq_length": 4}, square(4, 128))


def queries(h: int, w: int, random: torch.Generator) -> Picture:
    """A tile and the whole picture, 144 queries each, and a separator."""
    pixels = {"pixel_values": noise(random, 1, 3, 128, 128), "pixel_values_local": noise(random, 1, 3, 128, 128)}
    return run(2 * 144 + 1), {**pixels, "num_local_patches": torch.tensor([1])}


add(
    "deepseek_ocr2",
    {
        "vision_config": {
            "sam_config": {**SAM, "downsample_channels": [24, 32]},
            "encoder_config": {
                "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
                "num_key_value_heads": 2, "vocab_size": 8,
            },
        },
        "text_config": text(
            n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, n_shared_experts=1,
            mlp_layer_types=["dense"] + ["sparse"] * 5, max_position_embeddings=2048,
        ),
        "image_token_id": IMAGE,
    },
    queries,
)  # fmt: skip
add(
    "deepseek_vl",
    {"vision_config": {**SIGLIP, "vision_use_head": False}, "text_config": LLAMA, "image_token_id": IMAGE}, square(16),
)  # fmt: skip


def two_resolutions(h: int, w: int, random: torch.Generator) -> Picture:
    high = noise(random, 1, 3, 128, 128)
    return run(16), {"pixel_values": noise(random, 1, 3, 96, 96), "high_res_pixel_values": high}


add(
    "deepseek_vl_hybrid",
    {
        "vision_config": {"model_type": "siglip_vision_model", **tower(96, 24, vision_use_head=False)},
        "high_res_vision_config": {
            **SAM, "model_type": "sam_vision_model", "global_attn_indexes": [0, 1], "output_channels": 8,
        },
        "text_config": LLAMA, "image_token_id": IMAGE,
    },
    two_resolutions,
)  # fmt: skip
VQ = {
    "embed_dim": 8, "num_embeddings": 16, "latent_channels": 8, "base_channels": 32, "channel_multiplier": [1, 1],
    "num_res_blocks": 1,
}  # fmt: skip
add(
    "janus",
    {
        "vision_config": {
            "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 56, "patch_size": 14,
            "mlp_ratio": 2.0, "projection_dim": 64, "depth": 2, "num_image_tokens": 16, "use_qk_norm": False,
        },
        "text_config": LLAMA,
        "vq_config": {
            **VQ, "double_latent": False, "projection_dim": 64, "image_token_embed_dim": 16, "num_patches": 4,
            "num_hidden_layers": 1,
        },
        "image_token_id": IMAGE,
    },
    square(16),
)  # fmt: skip
add(
    "ovis2",
    {
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2,
            "image_size": 56, "patch_size": 14, "vocab_size": 40, "hidden_stride": 2, "num_visual_indicator_tokens": 5,
        },
        "text_config": QWEN2, "image_token_id": IMAGE, "visual_indicator_token_ids": [111, 112, 113, 114, 115],
        "hidden_size": 64, "vocab_size": 128,
    },
    square(4),
)  # fmt: skip
