"""Frames out of video files, by PyAV: in bounded memory, and only out of files that name no others."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foveate.data.images import MAX_PIXELS
from foveate.errors import MissingExtraError, VideoError

MAX_FRAMES = 768
"""Frames that are taken of one video, at most."""
MAX_FRAME_PIXELS = 2560 * 1440
"""Larger frames are scaled down while they are decoded; what models read is far smaller."""
MAX_SECONDS = 24 * 3600
SEEK_SECONDS = 20.0
"""Between frames that lie farther apart the file is searched instead of decoded."""

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,flv,asf"
"""FFmpeg's containers that are read. Others, such as playlists, name further files and addresses to open."""

Sampler = Callable[[int, float], Sequence[int]]
"""Which frames to take of a video of so many frames and frames per second."""


@dataclass(frozen=True)
class DecodingLimits:
    """What a video may cost.

    Attributes:
        pixels: of one frame as it is stored.
        seconds: of decoding; None: as long as it takes.
    """

    pixels: int = MAX_PIXELS
    seconds: float | None = None


@contextmanager
def opened(file: Path | io.BytesIO) -> Iterator[Any]:
    """PyAV's container of a file.

    Raises:
        MissingExtraError: PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("Videos need PyAV: pip install 'foveate[video]'.") from error
    place = str(file.absolute()) if isinstance(file, Path) else file
    reach = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    with av.open(place, options=reach, metadata_errors="ignore") as container:
        yield container


def read_frames(
    container: Any, sampler: Sampler, name: str, limits: DecodingLimits
) -> tuple[np.ndarray, tuple[int, ...], int, float]:
    """The frames `[T, height, width, 3]`, their numbers, how many the video has, and how many a second.

    Raises:
        VideoError: nothing that can be decoded within the limits.
    """
    if not container.streams.video:
        raise VideoError(f"{name} has no video in it (sound only?).")
    stream = container.streams.video[0]
    fps = float(stream.average_rate or stream.guessed_rate or 24)
    seconds = _seconds(container, stream)
    if seconds > MAX_SECONDS:
        raise VideoError(
            f"{name} is {seconds / 3600:.0f} hours long, the limit is {MAX_SECONDS // 3600}. Cut it first."
        )
    if stream.width * stream.height > limits.pixels:
        raise VideoError(
            f"{name} has frames of {stream.width} x {stream.height} pixels, the limit is {limits.pixels / 1e6:g} "
            "megapixels. Scale it down first."
        )
    total = _total(container, stream, seconds * fps)
    if total < 1:
        raise VideoError(f"{name} has no frames.")
    wanted = sorted({min(max(0, int(index)), total - 1) for index in sampler(total, fps)})
    if not wanted or len(wanted) > MAX_FRAMES:
        raise VideoError(f"{len(wanted)} frames of {name} were asked for; take 1 to {MAX_FRAMES}.")
    stream.thread_type = "AUTO"
    stream.codec_context.options = {"max_pixels": str(limits.pixels)}  # whatever the file's head says
    frames = list(_frames(container, stream, wanted, fps, _Clock(name, limits.seconds)))
    if not frames:
        raise VideoError(f"{name} has no frames that can be decoded.")
    if len(frames) < len(wanted) and wanted[len(frames)] < total - 2:
        raise VideoError(
            f"{name} ends before frame {wanted[len(frames)]} of {total}: it is cut off. Convert it, or ask for fewer "
            "frames of its beginning."
        )
    return np.stack(frames), tuple(wanted[: len(frames)]), total, fps


def _seconds(container: Any, stream: Any) -> float:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration else 0.0


def _total(container: Any, stream: Any, estimate: float) -> int:
    total = stream.frames or round(estimate)
    if total < 1:  # nothing says how many: count the packets, which is quick
        total = sum(packet.pts is not None for packet in container.demux(stream))
        container.seek(0)
    return int(total)


class _Clock:
    """Ends decoding that takes too long: the head of a hostile file says nothing true about its length."""

    def __init__(self, name: str, seconds: float | None) -> None:
        self._name, self._seconds, self._start = name, seconds, time.monotonic()

    def check(self) -> None:
        if self._seconds is not None and time.monotonic() - self._start > self._seconds:
            raise VideoError(f"{self._name} took more than {self._seconds:g} seconds to decode. Cut or shrink it.")


def _frames(container: Any, stream: Any, wanted: Sequence[int], fps: float, clock: _Clock) -> Iterator[np.ndarray]:
    """The wanted frames in order. Those that lie close together are counted one by one, as exact as the file is; to
    reach one that lies far ahead the file is searched, and frames are told by their time."""
    size: tuple[int, int] | None = None
    number, decoded = 0, container.decode(stream)
    for index in wanted:
        if (index - number) / fps > SEEK_SECONDS:
            container.seek(int((stream.start_time or 0) + index / fps / stream.time_base), stream=stream)
            number, decoded = -1, container.decode(stream)
        for frame in decoded:
            clock.check()
            here = number if number >= 0 else _number(frame, stream, fps)
            number = here + 1
            if here >= index:
                size = size or _bounded(frame.width, frame.height)
                yield frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
                break


def _number(frame: Any, stream: Any, fps: float) -> int:
    start = float((stream.start_time or 0) * stream.time_base)
    return round(((frame.time or 0.0) - start) * fps)


def _bounded(width: int, height: int) -> tuple[int, int]:
    scale = min(1.0, (MAX_FRAME_PIXELS / (width * height)) ** 0.5)
    return max(2, round(width * scale)), max(2, round(height * scale))
