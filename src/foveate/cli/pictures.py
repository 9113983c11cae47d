"""What a user names as pictures: files, folders, `-` for standard input, and addresses where they are allowed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MOST_BYTES = 64 << 20
"""Of a picture on standard input; as of one on the network."""


def opened(
    sources: Sequence[str], urls: bool = False, frames: int | None = None, fps: float | None = None
) -> list[Any]:
    """The pictures; of a video its file, once it is sure that it can be read.

    Args:
        urls: whether http and https addresses are fetched.
        frames, fps: of the videos.

    Raises:
        InputError: an address that may not be fetched, nothing on standard input, or frames of no video.
        ImageError, VideoError: what cannot be opened.
    """
    from foveate.data.videos import FrameSampling, check_video, is_video
    from foveate.errors import InputError

    FrameSampling(frames, fps)
    found = [one for source in sources for one in _named(source)]
    if (frames or fps) and not any(map(is_video, found)):
        raise InputError("--frames and --fps are about videos, and none was given.")
    for file in filter(is_video, found):
        check_video(file)
    return [file if is_video(file) else _picture(file, urls) for file in found]


def sampled(one: Any, processor: Any, frames: int | None = None, fps: float | None = None) -> Any:
    """A picture as it is, a video with the frames that the model's processor would take."""
    from foveate.data.videos import FrameSampling
    from foveate.inference.batches import sampled as take

    return take(processor, one, FrameSampling(frames, fps) if frames or fps else None) if isinstance(one, str) else one


def _named(source: str) -> Iterator[str]:
    """A name as it is; of a folder its pictures and videos, sorted."""
    from foveate.data.folders import KINDS, pictures_among
    from foveate.errors import InputError

    folder = Path(source)
    if not folder.is_dir():
        yield source
        return
    files = pictures_among(sorted(folder.iterdir()))
    if not files:
        raise InputError(f"The folder {source} holds no pictures or videos ({KINDS}).")
    yield from map(str, files)


def _picture(source: str, urls: bool) -> Any:
    from foveate.data.images import is_address, open_image
    from foveate.errors import InputError
    from foveate.inference.chats import open_picture

    if source == "-":
        return open_image(_standard_input())
    if is_address(source) and not urls:
        raise InputError(
            f"{source} is on the network: add --url to let it be fetched, or download it and give the file."
        )
    return open_picture(source, remote=urls)


def _standard_input() -> bytes:
    from foveate.errors import InputError

    if sys.stdin.isatty():
        raise InputError(
            "- reads a picture from standard input, and nothing is connected to it: foveate ask - ... < a.png"
        )
    found = sys.stdin.buffer.read(MOST_BYTES + 1)
    if not found or len(found) > MOST_BYTES:
        what = f"more than {MOST_BYTES >> 20} MiB" if found else "nothing"
        raise InputError(f"- reads a picture from standard input, and there was {what}.")
    return found
