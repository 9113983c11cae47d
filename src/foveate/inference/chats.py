"""Conversations: what may stand in them, and their images opened."""

from __future__ import annotations

import http.client
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from foveate.data.images import is_address, is_data_uri, is_path, open_image
from foveate.errors import InputError

Message = dict[str, Any]
Chat = list[Message]

SOURCES = ("image", "image_url", "url", "path", "base64")
"""Keys of an image part under which its picture may stand."""


def user(text: str, images: Iterable[Any] = ()) -> Message:
    """One user turn: the images (anything that `open_picture` takes), then the text."""
    content = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*content, {"type": "text", "text": text}]}


def assistant(text: str) -> Message:
    """One turn of the model, as a history holds it."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def is_batch(conversation: Any) -> bool:
    """Whether this is a list of conversations rather than one."""
    return bool(conversation) and isinstance(conversation[0], list | tuple)


def open_chat(chat: Sequence[Message], remote: bool = False, local: bool = True) -> Chat:
    """The conversation with every picture opened, so that it looks alike to any processor and template.

    Image parts are `{"type": "image", "image" | "path" | "url" | "base64": source}` or OpenAI's
    `{"type": "image_url", "image_url": {"url": source}}`; they become `{"type": "image", "image": PIL image}`. A
    part without a source stays as it is: its picture is given elsewhere. The messages given are not changed.

    Args:
        remote: fetch http and https addresses. Off by default: who asks a server shall not choose what it fetches.
        local: read files. A server that takes conversations from elsewhere turns it off.

    Raises:
        InputError: a message or part of another form, a video or sound, or a picture from where it is not allowed.
        ImageError: a picture that cannot be opened.
    """
    return [
        message | {"content": list(_parts(message, remote, local))} if _has_parts(message) else message
        for message in chat
    ]


def _has_parts(message: Any) -> bool:
    if not isinstance(message, dict) or "role" not in message:
        raise InputError(
            f"A message is a dictionary with 'role' and 'content', not {_shown(message)}; a batch is a list of "
            "conversations, each a list of messages."
        )
    content = message.get("content")
    if isinstance(content, list | tuple):
        return True
    if content is None or isinstance(content, str):
        return False
    raise InputError(f"A message's content is text or a list of parts, not {_shown(content)}.")


def _parts(message: Message, remote: bool, local: bool) -> Iterator[dict[str, Any]]:
    for part in message["content"]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("image", "image_url"):
            yield _image_part(part, remote, local)
        elif kind in ("video", "video_url", "audio", "input_audio"):
            raise InputError(
                f"A {kind} part: without torchvision only images and text can be prepared. Install torchvision and "
                "pass videos to the model's own processor, which foveate then loads."
            )
        elif kind is None:
            raise InputError(f"A part of a message is a dictionary with a 'type', not {_shown(part)}.")
        else:
            yield part


def _image_part(part: dict[str, Any], remote: bool, local: bool) -> dict[str, Any]:
    given = [key for key in SOURCES if part.get(key) is not None]
    if len(given) > 1:
        raise InputError(f"An image part has one picture, this one has {' and '.join(given)}; make it two parts.")
    kept = {key: value for key, value in part.items() if key not in SOURCES}
    if not given:
        return kept | {"type": "image"}
    source = part[given[0]]
    if isinstance(source, dict) and "url" in source:  # {"image_url": {"url": ...}}
        source = source["url"]
    if given[0] == "base64" and isinstance(source, str) and not is_data_uri(source):
        source = f"data:;base64,{source}"
    return kept | {"type": "image", "image": open_picture(source, remote, local)}


def open_picture(source: Any, remote: bool = False, local: bool = True) -> Any:
    """What `open_image` opens, from where it is allowed to come; with `remote` an address too.

    Raises:
        InputError: an http(s) address where `remote` is off, or a file where `local` is.
        ImageError: nothing that can be opened.
    """
    if is_address(source):
        if not remote:
            raise InputError(
                f"{source} is on the network, and addresses are not fetched unless that is asked for: download it and "
                "give the file, or allow it with remote=True."
            )
        source = fetch(source)
    elif is_path(source) and not local:
        raise InputError("Pictures are not read from files here; send a data URL (data:image/png;base64,...).")
    return open_image(source)


def fetch(address: str, most: int = 64 << 20, seconds: float = 20.0) -> bytes:
    """The bytes behind an http(s) address.

    Raises:
        InputError: not there, too slow, or more than `most` bytes.
    """
    try:
        with urllib.request.urlopen(address, timeout=seconds) as response:
            found: bytes = response.read(most + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise InputError(f"{address} cannot be fetched: {error}.") from error
    if len(found) > most:
        raise InputError(f"{address} has more than {most >> 20} MiB; give a smaller picture.")
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
