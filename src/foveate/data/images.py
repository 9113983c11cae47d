"""The one way in which images are opened, wherever they come from: the same pixels through every door."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

import numpy as np
from PIL import Image

from foveate.data.pixels import from_array, to_rgb, upright
from foveate.errors import ImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")
"""What is decoded (of animations and multi-page files the first picture). Others, such as EPS or PDF, are programs."""

MAX_PIXELS = 64_000_000
"""Larger images are refused before they are decoded: a few kilobytes can unfold into gigabytes."""

MAX_ASPECT = 200
"""Longer side over shorter. Qwen's image processors refuse more; those that scale the shorter side up to a fixed
size (CLIP) would unfold a small file into gigabytes."""


def open_image(source: Any, *, folder: Path | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image as 8-bit RGB: upright according to its EXIF orientation, transparency laid on white.

    Args:
        source: a path or `file://` address, a data URI (`data:image/png;base64,...`), an encoded file's bytes, a
            binary file object, a PIL image, an array (see `pixels.from_array`; depths: `pixels.eight_bits`) or a
            Hugging Face image column's `{"bytes": ..., "path": ...}`.
        folder: what relative paths are relative to; default: the working directory.

    Raises:
        ImageError: missing, empty, truncated, a format that is not read, a side of one pixel, too many pixels.
    """
    name = describe(source)
    with _told(name), _opened(source, folder, name) as image:
        _check_size(name, image.size, max_pixels)
        rgb = to_rgb(upright(image))
    rgb.info = {}  # an orientation or transparency that has been applied must not be applied again
    return rgb


def stored_size(source: Any, *, folder: Path | None = None) -> tuple[int, int]:
    """(width, height) as the file says, before any turning; nothing is decoded.

    Raises:
        ImageError: as `open_image`, but for damage that only decoding shows.
    """
    name = describe(source)
    with _told(name), _opened(source, folder, name) as image:
        return image.size


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Every error of the block as one of ours that names the image."""
    try:
        yield
    except ImageError as error:
        raise error if name in str(error) else ImageError(f"{name}: {error}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name} has too many pixels: {error}. Resize it first.") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow and what it calls raise many kinds
        raise ImageError(
            f"{name} cannot be read as an image ({error}). Is it complete, and one of {', '.join(FORMATS)}?"
        ) from error


def describe(source: Any) -> str:
    """The name of an image in messages."""
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, str) and is_data_uri(source):
        return "the image in the data URI"
    if isinstance(source, str | PathLike):
        return str(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return f"the image of {len(source):,} bytes"
    name = getattr(source, "name", None)
    return str(name) if isinstance(name, str) else f"the image ({type(source).__name__})"


def is_data_uri(text: str) -> bool:
    return text[:5].lower() == "data:"


def is_address(source: Any) -> bool:
    """Whether it names a picture on the network."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def is_path(source: Any) -> bool:
    """Whether opening it reads a file that it names."""
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path")
    return isinstance(source, PathLike) or (isinstance(source, str) and not is_data_uri(source))


@contextmanager
def _opened(source: Any, folder: Path | None, name: str) -> Iterator[Image.Image]:
    """The image before it is decoded. Only what was opened here is closed."""
    if isinstance(source, Image.Image):
        yield source
    elif hasattr(source, "__array__"):
        values = np.asarray(source)
        if values.size == 0:
            raise ImageError(f"an array of shape {list(values.shape)} is empty")
        if values.size > 4 * MAX_PIXELS:
            raise ImageError(f"an array of shape {list(values.shape)} has too many pixels. Resize it first.")
        yield from_array(values)
    else:
        file = _file(source, folder, name)
        stream = io.BytesIO(file) if isinstance(file, bytes) else file.open("rb")
        with stream, Image.open(stream, formats=FORMATS) as image:
            yield image


def _file(source: Any, folder: Path | None, name: str) -> bytes | Path:
    """The encoded file: its bytes, or where it is."""
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, str) and is_data_uri(source):
        source = decode_uri(source)
    elif hasattr(source, "read"):
        source = _read(source)
    if isinstance(source, bytes | bytearray | memoryview):
        if not len(source):
            raise ImageError(f"{name} is empty (0 bytes).")
        return bytes(source)
    if not isinstance(source, str | PathLike):
        raise ImageError(
            "an image must be a path, a data URI, bytes, a file object, a PIL image or an array, not "
            f"{type(source).__name__}."
        )
    return _path(source, folder)


def _path(source: str | PathLike[str], folder: Path | None) -> Path:
    if is_address(source):
        raise ImageError(f"{source} is an address; foveate does not fetch images. Download it and give the file.")
    if isinstance(source, str) and source[:7].lower() == "file://":
        source = url2pathname(urlsplit(source).path)
    path = Path(source) if folder is None else folder / source
    try:
        size = path.stat().st_size if path.is_file() else None
    except OSError as error:  # for example a name that is too long
        raise ImageError(f"There is no image file at {str(source)[:200]} ({error.strerror}).") from error
    if size is None:
        raise ImageError(f"There is no image file at {path}.")
    if size == 0:
        raise ImageError(f"{path} is empty (0 bytes).")
    return path


def decode_uri(uri: str) -> bytes:
    """The file that a data URI holds."""
    head, comma, body = uri.partition(",")
    if not comma:
        raise ImageError("the image in the data URI is cut off: there is no comma.")
    data = unquote_to_bytes(body)
    if not head.lower().endswith(";base64"):
        return data
    data = b"".join(data.split())
    try:
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except binascii.Error as error:
        raise ImageError(f"the image in the data URI is no base64 ({error}).") from error


def _read(file: Any) -> bytes:
    """All of a binary file object, which is left where it stood."""
    seekable = getattr(file, "seekable", lambda: False)()
    if seekable:
        place = file.tell()
        file.seek(0)
    data = file.read()
    if seekable:
        file.seek(place)
    if not isinstance(data, bytes):
        raise ImageError("the file object gives text; open it with mode 'rb'.")
    return data


def _check_size(name: str, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if min(size) < 2:
        raise ImageError(f"{name} is {width} x {height} pixels; each side needs at least 2.")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} has {width} x {height} = {width * height / 1e6:.0f} megapixels, the limit is "
            f"{max_pixels / 1e6:.0f}. Resize it first."
        )
    if max(size) > MAX_ASPECT * min(size):
        raise ImageError(f"{name} is {width} x {height} pixels; one side may be at most {MAX_ASPECT} times the other.")
