"""Conversations in one left-padded batch of model inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from foveate.errors import FoveateError, InputError
from foveate.families import adapt
from foveate.inference.chats import open_chat, user
from foveate.inference.placeholders import check_chat, placeholders
from foveate.inference.processor import REFUSALS


def build_batch(model: Any, processor: Any, rows: Sequence[tuple[Sequence[Any], str]]) -> dict[str, Tensor]:
    """Model inputs for one user turn per row, `(images, question)`, on the model's device and in its dtype."""
    return encode(model, processor, [[user(question, images)] for images, question in rows])


def encode(
    model: Any, processor: Any, chats: Sequence[Any], remote: bool = False, local: bool = True
) -> dict[str, Tensor]:
    """Model inputs of whole conversations, padded on the left, on the model's device and in its dtype.

    Every processor gets opened pictures, so that they look alike whichever it is.

    Args:
        remote, local: where pictures may come from, see `open_chat`.

    Raises:
        InputError: a conversation that the processor cannot prepare, or text in which the model would see an image.
        ImageError: a picture that cannot be opened.
    """
    if not chats:
        raise InputError("There is no conversation to prepare.")
    marks = placeholders(adapt(model), processor.tokenizer)
    opened = [open_chat(chat, remote, local) for chat in chats]
    for chat in opened:
        check_chat(chat, marks)
    try:
        inputs = processor.apply_chat_template(
            opened,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": len(opened) > 1},
        )
    except FoveateError:
        raise
    except REFUSALS as error:
        raise InputError(f"The processor cannot prepare the conversation: {error}") from error
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }
