"""The zoo models with the processor under test and the stock one, and what is asked of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor

import foveate
from foveate.families import adapt
from foveate.inference.processor import ImageTextProcessor


class StockQwen(Qwen2_5_VLProcessor):
    """The stock processor without the video part, which alone needs torchvision."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str) -> None:
        self.image_token, self.image_token_id = "<|image_pad|>", tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self.video_token, self.video_token_id = None, None
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


class Pair:
    """A zoo model, the processor under test and the stock one."""

    def __init__(self, name: str) -> None:
        self.model, found = foveate.load(name)
        tokenizer, images = found.tokenizer, found.image_processor
        template = found.chat_template
        self.family = adapt(self.model)
        self.ours = ImageTextProcessor(images, tokenizer, self.family, template)
        if self.family.name == "llava":
            strategy = {"patch_size": found.patch_size, "vision_feature_select_strategy": "default"}
            extra = {"num_additional_image_tokens": 1, "image_token": found.image_token}
            self.stock: Any = LlavaProcessor(images, tokenizer, **strategy, **extra, chat_template=template)
        else:
            self.stock = StockQwen(images, tokenizer, template)


def picture(width: int = 230, height: int = 170, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def chat(*images: Any, text: str = "What is shown?") -> list[dict[str, Any]]:
    content = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


def same(ours: Any, stock: Any) -> None:
    assert isinstance(ours, BatchFeature)
    assert set(ours) == set(stock)
    for name in stock:
        one, two = ours[name], stock[name]
        assert type(one) is type(two), name
        if isinstance(one, torch.Tensor):
            assert one.dtype == two.dtype, name
            assert torch.equal(one, two), name
        elif isinstance(one, np.ndarray):
            assert np.array_equal(one, two), name
        else:
            assert np.array_equal(np.asarray(one), np.asarray(two)), name
