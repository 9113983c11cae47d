"""Several questions in one left-padded batch, and their greedy answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def build_batch(model: Any, processor: Any, rows: Sequence[tuple[Sequence[Any], str]]) -> dict[str, Tensor]:
    """Model inputs for one user turn per row, `(images, question)`, on the model's device and in its dtype."""
    chats = []
    for images, question in rows:
        content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": question}]
        chats.append([{"role": "user", "content": content}])
    return encode(model, processor, chats)


def encode(model: Any, processor: Any, chats: list[Any]) -> dict[str, Tensor]:
    """Model inputs of whole conversations, padded on the left."""
    inputs = processor.apply_chat_template(
        chats,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": len(chats) > 1},
    )
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }


@torch.inference_mode()
def generate(model: Any, processor: Any, inputs: dict[str, Tensor], max_new_tokens: int) -> list[str]:
    """Greedy answers to a left-padded batch, one per row, by the model's own `generate`."""
    out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
    new = out[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
