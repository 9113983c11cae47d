"""Conversations: what may stand in them, and their images opened."""

from __future__ import annotations

import http.client
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from foveate.data.decoding import Sampler
from foveate.data.images import is_address, is_data_uri, is_path, open_image
from foveate.data.videos import Clip, FrameSampling, open_video
from foveate.errors import InputError

Samplers = Callable[[FrameSampling | None], Sampler]
Message = dict[str, Any]
Chat = list[Message]

SOURCES = ("image", "image_url", "url", "path", "base64")
"""Keys of an image part under which its picture may stand."""
VIDEO_SOURCES = ("video", "video_url", "url", "path", "base64")


def user(text: str, images: Any = ()) -> Message:
    """One user turn: the images, then the text.

    Args:
        text: the question.
        images: one, or several in any order that can be iterated: what `open_picture` takes; a `Clip` is a video.

    Raises:
        InputError: the text is none.
    """
    if not isinstance(text, str):
        raise InputError(
            f"user(text, images) takes the question first, then pictures; the question was {_shown(text)}."
        )
    content = [
        {"type": "video", "video": image} if isinstance(image, Clip) else {"type": "image", "image": image}
        for image in ([images] if _is_one(images) else images)
    ]
    return {"role": "user", "content": [*content, {"type": "text", "text": text}]}


def _is_one(images: Any) -> bool:
    """Whether this is a picture by itself: paths, bytes, files and arrays can be iterated, too."""
    if hasattr(images, "shape"):
        return len(images.shape) < 4
    if isinstance(images, str | bytes | bytearray | dict) or hasattr(images, "read"):
        return True
    return not isinstance(images, Iterable)


def assistant(text: str) -> Message:
    """One turn of the model, as a history holds it."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def is_batch(conversation: Any) -> bool:
    """Whether this is a list of conversations rather than one."""
    return bool(conversation) and isinstance(conversation[0], list | tuple)


def open_chat(
    chat: Sequence[Message], remote: bool = False, local: bool = True, sampler: Samplers | None = None
) -> Chat:
    """The conversation with every picture opened, so that it looks alike to any processor and template.

    Image parts are `{"type": "image", "image" | "path" | "url" | "base64": source}` or OpenAI's
    `{"type": "image_url", "image_url": {"url": source}}`; they become `{"type": "image", "image": PIL image}`. A
    part without a source stays as it is: its picture is given elsewhere. The messages given are not changed.

    Video parts are `{"type": "video", "video" | "path" | "url" | "base64": source}` or
    `{"type": "video_url", "video_url": {"url": source}}`, with `"frames"` or `"fps"` for how many frames are taken.

    Args:
        remote: fetch http and https addresses. Off by default: who asks a server shall not choose what it fetches.
        local: read files. A server that takes conversations from elsewhere turns it off.
        sampler: gives the frames to take from what a part wishes; None: the model takes no videos.

    Raises:
        InputError: a message or part of another form, sound, a video for a model that takes none, or a picture from
            where it is not allowed.
        ImageError, VideoError: what cannot be opened.
    """
    return [
        message | {"content": list(_parts(message, remote, local, sampler))} if _has_parts(message) else message
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


def _parts(message: Message, remote: bool, local: bool, sampler: Samplers | None) -> Iterator[dict[str, Any]]:
    for part in message["content"]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("image", "image_url"):
            yield _image_part(part, remote, local)
        elif kind in ("video", "video_url"):
            if sampler is None:
                raise InputError(f"A {kind} part: this model takes no videos, or needs torchvision to prepare them.")
            yield _video_part(part, remote, local, sampler)
        elif kind in ("audio", "input_audio"):
            raise InputError(f"A {kind} part: only images, videos and text can be asked about.")
        elif kind is None:
            raise InputError(f"A part of a message is a dictionary with a 'type', not {_shown(part)}.")
        else:
            yield part


def _image_part(part: dict[str, Any], remote: bool, local: bool) -> dict[str, Any]:
    source, kept = _source(part, SOURCES, "An image part has one picture")
    if source is None:
        return kept | {"type": "image"}
    return kept | {"type": "image", "image": open_picture(source, remote, local)}


def _video_part(part: dict[str, Any], remote: bool, local: bool, sampler: Samplers) -> dict[str, Any]:
    source, kept = _source(part, VIDEO_SOURCES, "A video part has one video")
    wish = {name: kept.pop(name) for name in ("frames", "fps") if kept.get(name) is not None}
    if source is None:
        return kept | {"type": "video"}
    if is_address(source):
        source = fetch(_allowed(source, remote), "video")
    elif is_path(source) and not isinstance(source, list | tuple) and not local:
        raise InputError("Videos are not read from files here; send a data URL (data:video/mp4;base64,...).")
    return kept | {"type": "video", "video": open_video(source, sampler(FrameSampling(**wish) if wish else None))}


def _source(part: dict[str, Any], keys: Sequence[str], rule: str) -> tuple[Any, dict[str, Any]]:
    """Where the picture or video of a part is, and the rest of the part."""
    given = [key for key in keys if part.get(key) is not None]
    if len(given) > 1:
        raise InputError(f"{rule}, this one has {' and '.join(given)}; make it two parts.")
    kept = {key: value for key, value in part.items() if key not in keys}
    source = part[given[0]] if given else None
    if isinstance(source, dict) and "url" in source:  # {"image_url": {"url": ...}}
        source = source["url"]
    if given == ["base64"] and isinstance(source, str) and not is_data_uri(source):
        source = f"data:;base64,{source}"
    return source, kept


def open_picture(source: Any, remote: bool = False, local: bool = True) -> Any:
    """What `open_image` opens, from where it is allowed to come; with `remote` an address too.

    Raises:
        InputError: an http(s) address where `remote` is off, or a file where `local` is.
        ImageError: nothing that can be opened.
    """
    if is_address(source):
        source = fetch(_allowed(source, remote))
    elif is_path(source) and not local:
        raise InputError("Pictures are not read from files here; send a data URL (data:image/png;base64,...).")
    return open_image(source)


def _allowed(address: str, remote: bool) -> str:
    if not remote:
        raise InputError(
            f"{address} is on the network, and addresses are not fetched unless that is asked for: download it and "
            "give the file, or allow it with remote=True."
        )
    return address


def fetch(address: str, what: str = "picture", most: int = 64 << 20, seconds: float = 20.0) -> bytes:
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
        raise InputError(f"{address} has more than {most >> 20} MiB; give a smaller {what}.")
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
