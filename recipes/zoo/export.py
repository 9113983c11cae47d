"""Writes a trained model as an ordinary checkpoint folder."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast, Qwen2VLImageProcessorPil

from recipes.zoo.tokenizer import IMAGE


def export(
    model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path, family: str, image_size: int, largest: int = 672
) -> None:
    """bf16 weights, configurations, tokenizer and image processor; replaces what stood in `folder` at the end.

    Args:
        image_size: side of LLaVA's pictures; `largest`: side beyond which Qwen2.5-VL's are made smaller.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    if family == "llava":
        size = {"height": image_size, "width": image_size}
        images = CLIPImageProcessorPil(size=size, do_center_crop=False, crop_size=size)
        built = model.config
        LlavaProcessor(
            images,
            tokenizer,
            patch_size=built.vision_config.patch_size,
            vision_feature_select_strategy=built.vision_feature_select_strategy,
            num_additional_image_tokens=1,  # the class token
            image_token=IMAGE,  # ours, not LLaVA-1.5's
            chat_template=tokenizer.chat_template,
        ).save_pretrained(partial)
    else:
        limits = {"shortest_edge": 112 * 112, "longest_edge": largest * largest}
        settings = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
        Qwen2VLImageProcessorPil(size=limits, **settings).save_pretrained(partial)
    for file in partial.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner only; a package is read by everyone
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
