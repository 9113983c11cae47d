"""Tiny random models with the stock architectures, and prompts made of random tokens and pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

LAYERS, VOCAB, IMAGE = 6, 97, 90


@dataclass
class Tiny:
    """A tiny model and a maker of prompts. A row is a list of parts: an int is that many text tokens, a pair
    (rows, columns) an image of that grid as the language model sees it."""

    family: str
    model: Any

    def batch(self, rows: Sequence[Sequence[Any]], seed: int = 0) -> dict[str, Tensor]:
        """Model inputs of a left-padded batch. A row's content depends on its parts only, not on its neighbours."""
        made = [self.row(row, seed) for row in rows]
        width = max(len(ids) for ids, _ in made)
        ids = torch.full((len(made), width), 0)
        mask = torch.zeros(len(made), width, dtype=torch.long)
        for r, (row, _) in enumerate(made):
            ids[r, width - len(row) :] = row
            mask[r, width - len(row) :] = 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        images = [image for _, found in made for image in found]
        if self.family == "qwen2_5_vl":
            inputs["mm_token_type_ids"] = (ids == IMAGE).int()
        if images:
            inputs["pixel_values"] = torch.cat([pixels for pixels, _ in images])
            if self.family == "qwen2_5_vl":
                inputs["image_grid_thw"] = torch.tensor([[1, 2 * h, 2 * w] for _, (h, w) in images])
        return inputs

    def row(self, parts: Sequence[Any], seed: int) -> tuple[Tensor, list[tuple[Tensor, tuple[int, int]]]]:
        random = torch.Generator().manual_seed(seed)
        ids: list[Tensor] = []
        images: list[tuple[Tensor, tuple[int, int]]] = []
        for part in parts:
            if isinstance(part, int):
                ids.append(torch.randint(5, 80, (part,), generator=random))
                continue
            h, w = self.grid(part)
            ids.append(torch.tensor([91, *[IMAGE] * (h * w), 92]))
            if self.family == "qwen2_5_vl":
                images.append((torch.randn(4 * h * w, 3 * 2 * 14 * 14, generator=random), (h, w)))
            else:
                images.append((torch.randn(1, 3, 14 * h, 14 * w, generator=random), (h, w)))
        return torch.cat(ids), images

    def grid(self, part: tuple[int, int]) -> tuple[int, int]:
        return (4, 4) if self.family == "llava" else part  # CLIP takes one size only


def qwen() -> nn.Module:
    config = Qwen2_5_VLConfig(
        text_config=dict(
            hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=VOCAB, max_position_embeddings=512, pad_token_id=0, bos_token_id=1,
            eos_token_id=None, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        ),
        vision_config=dict(
            depth=4, hidden_size=32, intermediate_size=48, num_heads=2, patch_size=14, spatial_merge_size=2,
            window_size=56, fullatt_block_indexes=[1, 3], out_hidden_size=64,
        ),
        image_token_id=IMAGE, video_token_id=89, vision_start_token_id=91, vision_end_token_id=92,
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config)


def llava() -> nn.Module:
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2, image_size=56,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=VOCAB, max_position_embeddings=512, pad_token_id=0, bos_token_id=1,
            eos_token_id=None,
        ),
        image_token_id=IMAGE, image_seq_length=16,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config)


FAMILIES = {"qwen2_5_vl": qwen, "llava": llava}


@cache
def make_tiny(family: str, attention: str = "sdpa") -> Tiny:
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    with torch.no_grad():  # random weights of the usual scale make attention uniform; spread it
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, weight.shape[-1] ** -0.5 if "proj" in name or "qkv" in name else 0.3)
        model.lm_head.weight[89:93] = 0  # never decode a placeholder
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    model.set_attn_implementation(attention)
    return Tiny(family, model)
