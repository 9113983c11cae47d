"""The one way in which videos are opened: a few frames of a file, decoded by PyAV in bounded memory."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foveate.data.decoding import MAX_FRAMES, DecodingLimits, Sampler, opened, read_frames
from foveate.data.images import decode_uri, is_address, is_data_uri, open_image
from foveate.errors import ConfigurationError, MissingExtraError, VideoError

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ogv", ".wmv", ".flv", ".3gp")
"""Of files that are videos where a picture could stand as well."""
TRANSPORT = ".ts"


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames of a video.

    Attributes:
        frames: `[T, height, width, 3]` uint8.
        indices: `[T]` their numbers in the video.
        total: frames of the video.
        fps: its frames per second; None for frames that come from no file.
        name: for messages.
    """

    frames: np.ndarray
    indices: tuple[int, ...]
    total: int
    fps: float | None
    name: str = "the video"

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.frames.shape[2], self.frames.shape[1]

    @property
    def seconds(self) -> tuple[float, ...]:
        """When each frame is shown; at 24 frames a second where nothing is known."""
        return tuple(index / (self.fps or 24.0) for index in self.indices)

    def image(self, number: int) -> Image.Image:
        """One of the frames as a picture."""
        return Image.fromarray(self.frames[number])


@dataclass(frozen=True)
class FrameSampling:
    """Which frames of a video are taken: evenly spaced, as transformers does by default.

    Args:
        frames: so many, or all of a shorter video.
        fps: so many a second, instead.

    Raises:
        ConfigurationError: both, or numbers that are none.
    """

    frames: int | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        if self.frames is not None and self.fps is not None:
            raise ConfigurationError("Give the number of frames or frames per second, not both.")
        if self.frames is not None and not 1 <= self.frames <= MAX_FRAMES:
            raise ConfigurationError(f"frames={self.frames} must lie between 1 and {MAX_FRAMES}.")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ConfigurationError(f"fps={self.fps} must be a positive number of frames a second.")

    def __call__(self, total: int, fps: float) -> list[int]:
        count = self.frames if self.fps is None else max(1, int(total / fps * self.fps))
        count = min(total, 8 if count is None else count, MAX_FRAMES)
        return [number * total // count for number in range(count)]


def open_video(
    source: Any,
    sampler: Sampler | None = None,
    *,
    folder: Path | None = None,
    limits: DecodingLimits = DecodingLimits(),  # noqa: B008
) -> Clip:
    """Frames of a video as 8-bit RGB.

    Args:
        source: a path, a data URI, an encoded file's bytes, or the frames themselves: a list of anything that
            `open_image` takes, or an array `[T, height, width, 3]` uint8 (these are not sampled).
        sampler: which frames; default: eight, evenly spaced.
        folder: what relative paths are relative to.
        limits: what decoding it may cost.

    Raises:
        VideoError: missing, no video in it, damaged, empty, absurdly long or large, or too slow to decode.
        MissingExtraError: PyAV is not installed.
    """
    if isinstance(source, Clip):
        return source
    if isinstance(source, np.ndarray) or hasattr(source, "__array__"):
        return _of_array(np.asarray(source))
    if isinstance(source, list | tuple):
        return _of_images(source, folder)
    name, file = _file(source, folder)
    with _told(name), opened(file) as container:
        return Clip(*read_frames(container, sampler or FrameSampling(), name, limits), name)


def check_video(source: Any) -> None:
    """Raise early for what `open_video` cannot open: it is opened, and its first frame decoded.

    Raises:
        VideoError, MissingExtraError: as `open_video`, but for a file that is cut off behind its first frame.
    """
    open_video(source, lambda total, fps: [0])


def is_video(source: Any, folder: Path | None = None) -> bool:
    """Whether a file's name says that it is a video. Files in `.ts` may hold TypeScript; they must begin like an MPEG
    transport stream.

    Args:
        folder: what a relative path is relative to.
    """
    if not isinstance(source, str | PathLike):
        return False
    path = Path(source) if folder is None else folder / source
    if path.suffix.lower() != TRANSPORT:
        return path.suffix.lower() in SUFFIXES
    try:
        with path.open("rb") as file:
            return file.read(189)[::188] == b"GG"  # a packet of 188 bytes, and the beginning of the next
    except OSError:
        return False


def is_frame(value: Any) -> bool:
    """Whether it is one picture of a video given as a list of them."""
    return isinstance(value, Image.Image) or (getattr(value, "ndim", 0) == 3 and not isinstance(value, Clip))


def _of_array(values: np.ndarray) -> Clip:
    if values.ndim != 4 or values.shape[-1] != 3 or values.dtype != np.uint8 or not values.size:
        raise VideoError(
            f"Frames are an array [T, height, width, 3] of uint8, not {list(values.shape)} {values.dtype}."
        )
    return Clip(values, tuple(range(len(values))), len(values), None)


def _of_images(images: Sequence[Any], folder: Path | None) -> Clip:
    shown = [np.asarray(open_image(image, folder=folder)) for image in images]
    if not shown:
        raise VideoError("A video of no frames was given.")
    if len({frame.shape for frame in shown}) > 1:
        raise VideoError("The frames of a video have one size; these have several. Resize them first.")
    return _of_array(np.stack(shown))


def _file(source: Any, folder: Path | None) -> tuple[str, Path | io.BytesIO]:
    if isinstance(source, bytes | bytearray | memoryview):
        return f"the video of {len(source):,} bytes", io.BytesIO(bytes(source))
    if isinstance(source, str) and is_data_uri(source):
        return "the video in the data URI", io.BytesIO(decode_uri(source))
    if not isinstance(source, str | PathLike):
        raise VideoError(
            f"A video must be a path, a data URI, bytes, a list of images or an array, not {type(source).__name__}."
        )
    if is_address(source):
        raise VideoError(f"{source} is an address; foveate does not fetch videos. Download it and give the file.")
    path = Path(source) if folder is None else folder / source
    try:
        found = path.is_file()
    except OSError:
        found = False
    if not found:
        raise VideoError(f"There is no video file at {str(path)[:200]}.")
    return str(path), path


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Every error of decoding as one of ours that names the video."""
    try:
        yield
    except (VideoError, MissingExtraError, ConfigurationError, MemoryError):
        raise
    except Exception as error:  # PyAV raises a kind for each of FFmpeg's errors
        raise VideoError(f"{name} cannot be read as a video ({error}). Is it complete?") from error
