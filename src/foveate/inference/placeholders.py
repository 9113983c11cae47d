"""Texts that a model's tokenizer turns into places of images, and that nobody may write into a question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from foveate.errors import InputError
from foveate.families.base import Family


def placeholders(family: Family, tokenizer: Any) -> tuple[str, ...]:
    """The placeholder texts of a model: `<|image_pad|>` and `<|video_pad|>`, or `<image>`."""
    tokens = tokenizer.convert_ids_to_tokens(list(family.token_ids.values()))
    return tuple(token for token in tokens if token)


def check_text(text: str, marks: tuple[str, ...], name: str) -> None:
    """Refuse text in which the model would look for images.

    Args:
        name: of the text, for the message.

    Raises:
        InputError: a placeholder stands in it.
    """
    for mark in marks:
        if mark in text:
            raise InputError(f"{name} holds {mark}, which stands for an image in this model's prompts; remove it")


def check_chat(chat: Iterable[Mapping[str, Any]], marks: tuple[str, ...]) -> None:
    """The same for every text of a conversation.

    Raises:
        InputError: a placeholder stands in one.
    """
    for message in chat:
        content = message.get("content") or ()
        parts = [{"text": content}] if isinstance(content, str) else content
        name = "the question" if message["role"] == "user" else f"the {message['role']} message"
        for part in parts:
            if isinstance(part.get("text"), str):
                check_text(part["text"], marks, name)
