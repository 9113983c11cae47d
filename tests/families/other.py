"""Types with decoders or layouts of their own: Llama 4, LFM, Gemma 3n and 4, Molmo, Phi, Fuyu, Chameleon and others."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from transformers.models.gemma3n import modeling_gemma3n

from tests.families.conv_tower import without_timm
from tests.families.tiny import (
    AUDIO,
    BOTH_IDS,
    BREAK,
    END,
    IMAGE,
    IMAGE_IDS,
    START,
    VIDEO,
    VOCAB,
    Picture,
    add,
    noise,
    run,
    square,
    text,
    tower,
)  # fmt: skip

add(
    "llama4",
    {
        "vision_config": {
            **tower(intermediate_size=128), "vision_output_dim": 48, "projector_input_dim": 48,
            "projector_output_dim": 48, "pixel_shuffle_ratio": 0.5,
        },
        "text_config": text(
            head_dim=16, intermediate_size_mlp=96, num_local_experts=2, attention_chunk_size=16,
            interleave_moe_layer_step=2, use_qk_norm=True, moe_layers=[1, 3, 5],
        ),
        **IMAGE_IDS,
    },
    square(4), beams=False,
)  # fmt: skip


def siglip2(h: int, w: int, random: torch.Generator) -> Picture:
    n = 4 * h * w
    pixels = F.pad(noise(random, 1, n, 588), (0, 0, 0, 64 - n))
    seen = torch.cat([torch.ones(1, n), torch.zeros(1, 64 - n)], 1).long()
    shapes = torch.tensor([[2 * h, 2 * w]])
    return run(h * w), {"pixel_values": pixels, "spatial_shapes": shapes, "pixel_attention_mask": seen}


SIGLIP2 = {
    "model_type": "siglip2_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 2, "patch_size": 14, "num_patches": 64, "vision_use_head": False,
}  # fmt: skip
add(
    "lfm2_vl",
    {
        "vision_config": SIGLIP2,
        "text_config": {
            "model_type": "lfm2",
            **text(layer_types=["conv", "conv", "full_attention"] * 2, block_auto_adjust_ff_dim=False),
        },
        "image_token_id": IMAGE, "downsample_factor": 2, "projector_hidden_size": 64,
    },
    siglip2, exact=False,
)  # fmt: skip
ALTERNATE = ["sliding_attention", "full_attention"] * 3


def gemma4(h: int, w: int, random: torch.Generator) -> Picture:
    places = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(8), indexing="xy"), -1).reshape(1, 64, 2)
    return run(16), {"pixel_values": noise(random, 1, 64, 588), "image_position_ids": places}


def gemma4_clip(h: int, w: int, random: torch.Generator) -> Picture:
    """Two frames of `h` by `w` tokens, each in a run of its own, filled up to the largest size."""
    places = torch.stack(torch.meshgrid(torch.arange(2 * w), torch.arange(2 * h), indexing="xy"), -1).reshape(-1, 2)
    places = F.pad(places, (0, 0, 0, 64 - len(places)), value=-1)
    ids = [t for frame in range(2) for t in (30 + frame, *run(h * w, token=VIDEO))]
    return ids, {
        "pixel_values_videos": noise(random, 2, 64, 588), "video_position_ids": places.expand(2, -1, -1),
        "num_frames_per_video": torch.tensor([2]),
    }  # fmt: skip


add(
    "gemma4",
    {
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
            "num_key_value_heads": 2, "head_dim": 16, "patch_size": 14, "pooling_kernel_size": 2,
            "position_embedding_size": 64, "default_output_length": 16,
        },
        "text_config": text(
            head_dim=16, global_head_dim=16, hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCAB,
            num_kv_shared_layers=2, sliding_window=8, layer_types=ALTERNATE, num_experts=None, enable_moe_block=False,
        ),
        "audio_config": None, **BOTH_IDS, "audio_token_id": AUDIO, "boi_token_id": START, "eoi_token_id": END,
    },
    gemma4, video=gemma4_clip, token_types="mm_token_type_ids",
)  # fmt: skip


def unified(h: int, w: int, random: torch.Generator) -> Picture:
    """Patches of a token's size with their places, filled up."""
    places = torch.stack(torch.meshgrid(torch.arange(w), torch.arange(h), indexing="xy"), -1).reshape(1, -1, 2)
    places = F.pad(places, (0, 0, 0, 16 - h * w), value=-1)
    return run(h * w), {"pixel_values": noise(random, 1, 16, 2352), "image_position_ids": places}


def unified_clip(h: int, w: int, random: torch.Generator) -> Picture:
    _, tensors = unified(h, w, random)
    ids = [t for frame in range(2) for t in (30 + frame, *run(h * w, token=VIDEO))]
    return ids, {
        "pixel_values_videos": noise(random, 2, 16, 2352),
        "video_position_ids": tensors["image_position_ids"].expand(2, -1, -1),
        "num_frames_per_video": torch.tensor([2]),
    }


add(
    "gemma4_unified",
    {
        "vision_config": {
            "patch_size": 14, "pooling_kernel_size": 2, "mm_embed_dim": 64, "mm_posemb_size": 16,
            "output_proj_dims": 64,
        },
        "text_config": text(head_dim=16, global_head_dim=16, sliding_window=8, layer_types=ALTERNATE),
        "audio_config": None, **BOTH_IDS, "audio_token_id": AUDIO, "boi_token_id": START, "eoi_token_id": END,
    },
    unified, video=unified_clip, token_types="mm_token_type_ids",
)  # fmt: skip


def gemma3n() -> object:
    without_timm(modeling_gemma3n)
    return modeling_gemma3n.Gemma3nConfig(
        text_config=text(
            head_dim=16, sliding_window=8, intermediate_size=[96] * 6, layer_types=ALTERNATE, num_kv_shared_layers=2,
            hidden_size_per_layer_input=8, vocab_size_per_layer_input=100, laurel_rank=8,
            activation_sparsity_pattern=[0.0] * 6, altup_num_inputs=4,
        ),
        vision_config={"hidden_size": 64, "vocab_size": 8, "vocab_offset": 100},
        audio_config={
            "hidden_size": 16, "vocab_size": 20, "vocab_offset": 108, "conf_num_hidden_layers": 1,
            "conf_num_attention_heads": 1, "sscp_conv_channel_size": [4, 4],
        },
        image_token_id=IMAGE, audio_token_id=AUDIO, boi_token_id=101, eoi_token_id=102, vision_soft_tokens_per_image=16,
    )  # fmt: skip


def gemma3n_image(h: int, w: int, random: torch.Generator) -> Picture:
    return run(16, 101, 102), {"pixel_values": noise(random, 1, 3, 56, 56)}


add("gemma3n", gemma3n, gemma3n_image)


def fuyu(h: int, w: int, random: torch.Generator) -> Picture:
    return run(16), {"pixel_values": noise(random, 1, 16, 588)}


add(
    "fuyu",
    {
        "image_size": 56, "patch_size": 14, "num_channels": 3, "image_token_id": IMAGE,
        "text_config": {"model_type": "persimmon", **text()}, **text(),
    },
    fuyu, beams=False,
)  # fmt: skip
CODES = {
    f"IMGIMG{a}{c}Z": 60 + 10 * i + j for i, a in enumerate("AB") for j, c in enumerate("ABCDEFGHIJ") if 10 * i + j < 16
}
VQ = {"embed_dim": 8, "latent_channels": 8, "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}
add(
    "chameleon",
    {
        **text(), "vq_config": {**VQ, "num_embeddings": 16, "resolution": 32, "attn_resolutions": None},
        "vocabulary_map": {**CODES, "<image>": IMAGE}, "image_token_id": IMAGE,
    },
    square(256, 32),
)  # fmt: skip


def emu(h: int, w: int, random: torch.Generator) -> Picture:
    """Words for 4 x 4 pixels each, one for the end of a line behind every row."""
    pixels = F.pad(noise(random, 1, 3, 4 * h, 4 * w), (0, 16 - 4 * w, 0, 16 - 4 * h))
    return run(h * (w + 1)), {"pixel_values": pixels, "image_sizes": torch.tensor([[4 * h, 4 * w]])}


WORDS = {f"<|visual token {i:06d}|>": 60 + i for i in range(16)}
add(
    "emu3",
    {
        "text_config": text(),
        "vq_config": {
            "codebook_size": 16, "embed_dim": 4, "latent_channels": 4, "base_channels": 32,
            "channel_multiplier": [1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "hidden_size": 32,
            "temporal_downsample_factor": 2,
        },
        "vocabulary_map": {**WORDS, "<image>": IMAGE, "<|extra_200|>": BREAK},
    },
    emu,
)  # fmt: skip


def aria(h: int, w: int, random: torch.Generator) -> Picture:
    seen = torch.ones(1, 56, 56, dtype=torch.bool)
    return run(6), {"pixel_values": noise(random, 1, 3, 56, 56), "pixel_mask": seen}


add(
    "aria",
    {
        "vision_config": {"model_type": "idefics3_vision", **tower()},
        "text_config": {"model_type": "aria_text", **text(moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1)},
        **IMAGE_IDS, "projector_patch_to_query_dict": {16: 6},
    },
    aria,
)  # fmt: skip


def molmo(h: int, w: int, random: torch.Generator) -> Picture:
    pools = torch.tensor([[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])
    return run(4), {
        "pixel_values": noise(random, 1, 16, 588), "image_token_pooling": pools,
        "image_grids": torch.tensor([[2, 2, 0, 0]]), "image_num_crops": torch.tensor([1]),
    }  # fmt: skip


def molmo_clip(h: int, w: int, random: torch.Generator) -> Picture:
    """Two frames, each in a run behind its time."""
    pools = torch.tensor([[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])
    ids = [t for frame in range(2) for t in (30 + frame, *run(4))]
    return ids, {
        "pixel_values_videos": noise(random, 2, 16, 588), "video_token_pooling": torch.cat([pools, pools + 16]),
        "video_grids": torch.tensor([[2, 2, 2]]),
    }  # fmt: skip


HEADS = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
add(
    "molmo2",
    {
        "text_config": text(head_dim=16, additional_vocab_size=8),
        "vision_config": {
            **HEADS, "num_hidden_layers": 4, "image_size": [56, 56], "patch_size": 14, "num_position_embeddings": 16,
        },
        "adapter_config": {**HEADS, "text_hidden_size": 64, "vit_layers": [-1, -2]},
        "image_patch_id": IMAGE, "image_start_token_id": START, "image_end_token_id": END,
        "low_res_image_start_token_id": BREAK,
    },
    molmo, video=molmo_clip, token_types="mm_token_type_ids", on_image_token=True,
)  # fmt: skip


def phi4(h: int, w: int, random: torch.Generator) -> Picture:
    seen = torch.ones(1, 2, 4, 4, dtype=torch.long)
    return run(2 * 3 + 1 + 2 * 3), {
        "image_pixel_values": noise(random, 1, 2, 3, 56, 56), "image_sizes": torch.tensor([[56, 56]]),
        "image_attention_mask": seen,
    }  # fmt: skip


add(
    "phi4_multimodal",
    {
        "vision_config": {**tower(num_hidden_layers=3), "crop_size": 56, "image_token_id": IMAGE},
        "audio_config": {
            "hidden_size": 32, "intermediate_size": 32, "num_blocks": 1, "num_attention_heads": 2,
            "ext_pw_out_channel": 32, "nemo_conv_channels": 8, "audio_token_id": AUDIO, "input_size": 16,
        },
        **text(),
    },
    phi4, kind="Phi4MultimodalForCausalLM",
)  # fmt: skip
add(
    "step3p7",
    {
        "text_config": {
            "model_type": "step3p5",
            **text(
                head_dim=16, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, share_expert_dim=32,
                num_sliding_attention_heads=4, sliding_window=8,
                layer_types=["full_attention", "sliding_attention", "sliding_attention"] * 2,
            ),
        },
        "vision_config": tower(112, num_hidden_layers=3), "image_token_id": IMAGE,
    },
    square(4, 112),
)  # fmt: skip
