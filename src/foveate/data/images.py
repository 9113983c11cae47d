"""Open image files safely."""

from __future__ import annotations

import base64
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from foveate.errors import ImageError

MAX_PIXELS = 64_000_000
"""Larger files are refused before they are decoded: a few kilobytes can unfold into gigabytes."""


def open_image(source: Any, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An RGB image, upright according to its EXIF orientation.

    Args:
        source: a path, a data URL, encoded bytes, a PIL image or a numpy array of 8-bit RGB values `[H, W, 3]`.

    Raises:
        ImageError: missing, empty, unreadable or truncated file, a side of one pixel, or too many pixels.
    """
    if isinstance(source, np.ndarray):
        source = Image.fromarray(source)
    if isinstance(source, Image.Image):
        _check_size(Path("the image"), source.size, max_pixels)
        return ImageOps.exif_transpose(source).convert("RGB")
    if isinstance(source, str) and source.startswith("data:"):
        source = base64.b64decode(source.partition(",")[2])
    if isinstance(source, bytes):
        with tempfile.NamedTemporaryFile() as file:
            Path(file.name).write_bytes(source)
            return open_image(file.name, max_pixels)
    path = Path(source)
    if not path.is_file():
        raise ImageError(f"There is no image file at {path}.")
    if path.stat().st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes).")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is lower
            image = Image.open(path)
        with image:
            _check_size(path, image.size, max_pixels)
            return ImageOps.exif_transpose(image).convert("RGB")
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} has too many pixels: {error}. Resize it first.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path} cannot be read as an image ({error}). Is it complete, and a picture?") from error


def _check_size(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if min(size) < 2:
        raise ImageError(f"{path} is {width} x {height} pixels; each side needs at least 2.")
    if width * height > max_pixels:
        raise ImageError(
            f"{path} has {width} x {height} = {width * height / 1e6:.0f} megapixels, the limit is "
            f"{max_pixels / 1e6:.0f}. Resize it first."
        )
