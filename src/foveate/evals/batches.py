"""Several questions in one left-padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
        padding=len(chats) > 1,
    )
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }
