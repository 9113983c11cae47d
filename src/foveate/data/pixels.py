"""Any pixels as 8-bit RGB, whatever their depth, palette or transparency."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from foveate.errors import ImageError

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation."""

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
"""TIFF tags."""


def upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF (or XMP) orientation wants it seen; damaged EXIF data count as none."""
    image.load()  # first, so that what is damaged below can only be the EXIF block
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises many kinds
        return image
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB: depths scaled, palettes and colour spaces resolved, transparency laid on white.

    Raises:
        ImageError: values whose scale cannot be told (see `eight_bits`).
    """
    if image.mode == "F" or image.mode.startswith("I"):
        image = _deep_grey(image)
    elif image.mode == "La":  # Pillow would drop its alpha on the way to RGBA
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def from_array(values: NDArray[Any]) -> Image.Image:
    """An image of an array `[H, W]` or `[H, W, C]` (`[C, H, W]` where only that can be meant).

    One channel is grey, two are grey and alpha, three RGB, four RGBA.

    Raises:
        ImageError: another shape, or values whose scale cannot be told.
    """
    shape = values.shape
    if values.ndim == 3 and shape[0] in (1, 3, 4) and shape[2] > 4:
        values = np.moveaxis(values, 0, 2)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim != 2 and not (values.ndim == 3 and values.shape[2] in (2, 3, 4)):
        raise ImageError(f"an array of shape {list(shape)} is no image; give [height, width] or [height, width, 1-4]")
    return Image.fromarray(np.ascontiguousarray(eight_bits(values)))


def eight_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Values scaled to 0..255.

    Booleans become 0 and 255; of 16 bits the upper eight are taken (as Pillow does with 16-bit RGB). Other types do
    not say what white is, so the smallest range that holds all values is taken: floats within 0..1 are fractions,
    within 0..255 eight bits; integers within 0..255 are eight bits, within 0..65535 sixteen.

    Raises:
        ImageError: values beyond, negative or not finite, or no numbers.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint16:
        return (values >> 8).astype(np.uint8)
    if values.dtype.kind not in "iuf":
        raise ImageError(f"pixels of type {values.dtype} are no numbers between black and white")
    low, high = float(values.min()), float(values.max())
    floats = values.dtype.kind == "f"
    if not (low >= 0 and high <= (255 if floats else 65535)):  # written so that NaN fails too
        limits = "0..1 or 0..255" if floats else "0..255 or 0..65535"
        raise ImageError(
            f"pixels of type {values.dtype} lie within {low:g}..{high:g}, which does not say what black and white "
            f"are; scale them to {limits}"
        )
    if not floats:
        return (values >> 8 if high > 255 else values).astype(np.uint8)
    return np.rint(values.astype(np.float32) * (255 if high <= 1 else 1)).astype(np.uint8)


def _deep_grey(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or floats, as eight bits; with alpha if one of its values stands for transparent."""
    values = np.asarray(image)
    transparent = image.info.get("transparency")
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        values = values.astype(np.uint16)  # in this machine's byte order
        if tuple(tags.get(_BITS_PER_SAMPLE, ())) == (12,):
            values = values << 4
        if tags.get(_PHOTOMETRIC) == 0:  # white is zero, which Pillow undoes for eight bits only
            values = 65535 - values
    grey = Image.fromarray(eight_bits(values))
    if not isinstance(transparent, int):
        return grey
    grey.putalpha(Image.fromarray(np.where(np.asarray(image) == transparent, 0, 255).astype(np.uint8)))
    return grey
