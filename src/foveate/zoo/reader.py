"""A zoo model with its tokenizer and image processor: samples in, answers out, by stock `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
)

from foveate.errors import UnsupportedModelError
from foveate.scenes import Sample

from . import names, resolve
from .tokenizer import IMAGE, SYSTEM

Inputs = dict[str, Tensor]


@dataclass
class Reader:
    """`Reader.load(name).answers(scenes.load("test", 16))`."""

    model: Any
    tokenizer: PreTrainedTokenizerFast
    processor: Any

    @classmethod
    def load(cls, name: str, dtype: torch.dtype = torch.float32) -> Reader:
        """Loads a zoo name or a folder.

        Raises:
            UnsupportedModelError: there is no such folder, or it holds neither a Qwen2.5-VL nor a LLaVA.
        """
        folder = resolve(name)
        if not (Path(folder) / "config.json").is_file():
            raise UnsupportedModelError(f"{name}: no checkpoint folder; the zoo has {', '.join(names())}")
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()
        processors = {"qwen2_5_vl": Qwen2VLImageProcessorPil, "llava": CLIPImageProcessorPil}
        if model.config.model_type not in processors:
            raise UnsupportedModelError(f"{name} is a {model.config.model_type}; known: {', '.join(processors)}")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, padding_side="left")
        return cls(model, tokenizer, processors[model.config.model_type].from_pretrained(folder))

    @property
    def is_qwen(self) -> bool:
        """Whether image tokens are merged patches of a variable grid."""
        return bool(self.model.config.model_type == "qwen2_5_vl")

    def inputs(self, samples: Sequence[Sample]) -> Inputs:
        """A left-padded batch for the stock model, image placeholders expanded."""
        images = [image for s in samples for image in s.images]
        pixels = self.processor(images=images, return_tensors="pt")
        grids = self.grids(pixels, len(images))
        counts = iter(rows * columns for rows, columns in grids)
        prompts = []
        for s in samples:
            parts = self._prompt(s).split(IMAGE)
            prompts.append(parts[0] + "".join(IMAGE * next(counts) + part for part in parts[1:]))
        batch = dict(self.tokenizer(prompts, return_tensors="pt", padding=True))
        batch.pop("token_type_ids", None)
        if self.is_qwen:
            batch["mm_token_type_ids"] = (batch["input_ids"] == self.model.config.image_token_id).int()
        return batch | dict(pixels)

    def _prompt(self, s: Sample) -> str:
        content = [{"type": "image"} for _ in s.images] + [{"type": "text", "text": s.question}]
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def grids(self, pixels: Any, images: int) -> list[tuple[int, int]]:
        """(rows, columns) of visual tokens of each image."""
        if self.is_qwen:
            return [(int(h) // 2, int(w) // 2) for _, h, w in pixels["image_grid_thw"].tolist()]
        tower = self.model.config.vision_config
        side = tower.image_size // tower.patch_size
        return [(side, side)] * images

    @torch.inference_mode()
    def generate(self, inputs: Inputs, max_new_tokens: int = 8) -> list[str]:
        """Greedy answers of a batch."""
        out = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new = out[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def answers(self, samples: Sequence[Sample]) -> list[str]:
        """Greedy answers to `samples`."""
        return self.generate(self.inputs(samples))
