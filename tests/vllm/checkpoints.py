"""Tiny random checkpoints, with processors, of every type that the plugin prunes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from foveate import zoo

IMAGE, START, END, VOCAB = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>", 576
PLACEHOLDER = {"llava": IMAGE, "llava_next": IMAGE, "internvl": IMAGE}
"""What a prompt holds for an image; for the others it stands between two tokens."""

TEXT: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": VOCAB, "max_position_embeddings": 1024, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip
CLIP: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 56,
    "patch_size": 14,
}  # fmt: skip
QWEN_VISION: dict[str, Any] = {"spatial_merge_size": 2, "num_heads": 2, "depth": 4}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}


def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(zoo.path("scenes-qwen2_5_vl"))


def _ids(tokenizer: Any) -> dict[str, int]:
    names = {"image_token_id": IMAGE, "vision_start_token_id": START, "vision_end_token_id": END}
    return {key: tokenizer.convert_tokens_to_ids(name) for key, name in names.items()} | {"video_token_id": VOCAB - 1}


def llava(tokenizer: Any) -> tuple[Any, Any]:
    sizes = {"size": {"height": 56, "width": 56}, "crop_size": {"height": 56, "width": 56}}
    image = _ids(tokenizer)["image_token_id"]
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**CLIP), text_config=LlamaConfig(**TEXT), image_token_id=image,
        image_token_index=image, image_seq_length=16,
    )  # fmt: skip
    processor = LlavaProcessor(
        CLIPImageProcessor(**sizes), tokenizer, patch_size=14, vision_feature_select_strategy="default",
        image_token=IMAGE, num_additional_image_tokens=1,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config), processor


def llava_next(tokenizer: Any) -> tuple[Any, Any]:
    tile, image = {"height": 56, "width": 56}, _ids(tokenizer)["image_token_id"]
    pinpoints = [[56, 112], [112, 56], [112, 112]]
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**CLIP), text_config=LlamaConfig(**TEXT), image_token_id=image,
        image_token_index=image, image_seq_length=16, image_grid_pinpoints=pinpoints,
    )  # fmt: skip
    images = LlavaNextImageProcessor(size={"shortest_edge": 56}, crop_size=tile, image_grid_pinpoints=pinpoints)
    processor = LlavaNextProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", image_token=IMAGE,
        num_additional_image_tokens=1,
    )  # fmt: skip
    return LlavaNextForConditionalGeneration(config), processor


def _patches(size: int) -> dict[str, Any]:
    return {
        "patch_size": size, "merge_size": 2, "temporal_patch_size": 2,
        "size": {"shortest_edge": (2 * size) ** 2, "longest_edge": 40 * (2 * size) ** 2},
    }  # fmt: skip


def qwen2_vl(tokenizer: Any) -> tuple[Any, Any]:
    config = Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": MROPE},
        vision_config={**QWEN_VISION, "embed_dim": 64, "hidden_size": 64, "mlp_ratio": 2, "patch_size": 14},
        **_ids(tokenizer),
    )
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(**_patches(14)), tokenizer, Qwen2VLVideoProcessor(**_patches(14))
    )
    return Qwen2VLForConditionalGeneration(config), processor


def qwen2_5_vl(tokenizer: Any) -> tuple[Any, Any]:
    vision = {
        **QWEN_VISION, "hidden_size": 64, "intermediate_size": 48, "patch_size": 14, "window_size": 56,
        "fullatt_block_indexes": [1, 3], "out_hidden_size": 64,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(text_config={**TEXT, "rope_parameters": MROPE}, vision_config=vision, **_ids(tokenizer))
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**_patches(14)), tokenizer, Qwen2VLVideoProcessor(**_patches(14))
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl(tokenizer: Any) -> tuple[Any, Any]:
    vision = {
        **QWEN_VISION, "hidden_size": 64, "intermediate_size": 48, "patch_size": 16, "out_hidden_size": 64,
        "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 2],
    }  # fmt: skip
    rope = {**MROPE, "mrope_interleaved": True}
    config = Qwen3VLConfig(text_config={**TEXT, "rope_parameters": rope}, vision_config=vision, **_ids(tokenizer))
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(**_patches(16)), tokenizer, Qwen3VLVideoProcessor(**_patches(16))
    )
    return Qwen3VLForConditionalGeneration(config), processor


def internvl(tokenizer: Any) -> tuple[Any, Any]:
    named = {
        "start_image_token": START, "end_image_token": END, "context_image_token": IMAGE, "video_token": "<|video_pad|>"
    }  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(zoo.path("scenes-qwen2_5_vl"), extra_special_tokens=named)
    config = InternVLConfig(
        vision_config={
            "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2,
            "image_size": [56, 56], "patch_size": [14, 14],
        },
        text_config=Qwen2Config(**TEXT), image_token_id=_ids(tokenizer)["image_token_id"], image_seq_length=4,
    )  # fmt: skip
    images = GotOcr2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=True, min_patches=1, max_patches=4)
    processor = InternVLProcessor(images, tokenizer, InternVLVideoProcessor(), image_seq_length=4)
    return InternVLForConditionalGeneration(config), processor


MAKERS: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    maker.__name__: maker for maker in (llava, llava_next, qwen2_vl, qwen2_5_vl, qwen3_vl, internvl)
}


def write(family: str, folder: Path) -> Path:
    """A checkpoint as vLLM reads it."""
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    model, processor = MAKERS[family](tokenizer)
    with torch.no_grad():  # random weights of the usual scale make attention uniform; spread it
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, weight.shape[-1] ** -0.5 if "proj" in name or "qkv" in name else 0.3)
        model.lm_head.weight[len(tokenizer) :] = 0  # what cannot be decoded
        model.lm_head.weight[tokenizer.all_special_ids] = 0
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    _as_vllm_reads(folder)
    return folder


def _as_vllm_reads(folder: Path) -> None:
    """vLLM 0.32 knows weights of CLIP towers by an older name, and the placeholder of LLaVA by its older key."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    if "image_token_index" not in config:
        config["image_token_index"] = config["image_token_id"]
    file.write_text(json.dumps(config, indent=1))
    if config["vision_config"]["model_type"] != "clip_vision_model":
        return
    weights, old = load_file(folder / "model.safetensors"), "vision_tower.vision_model."
    renamed = {name if old in name else name.replace("vision_tower.", old): weight for name, weight in weights.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})


def prompt(family: str, *parts: str | int) -> str:
    """Text in which a number stands for that many images."""
    image = PLACEHOLDER.get(family, START + IMAGE + END)
    return "".join(part if isinstance(part, str) else image * part for part in parts)
