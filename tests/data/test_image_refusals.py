"""Images that are refused, before they are decoded where that matters."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.data.images import FORMATS, MAX_ASPECT, open_image
from foveate.errors import ImageError

from .test_images import DOORS, ramp

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("door", ["path", "bytes", "file object", "data URI", "column with bytes"])
@pytest.mark.parametrize("kind", ["eps", "pdf", "ppm", "ico", "text", "svg"])
def test_other_formats_are_refused(tmp_path: Path, kind: str, door: str) -> None:
    path = tmp_path / "a.png"  # whatever it calls itself
    content = {"eps": EPS, "text": b"no picture", "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}
    if kind in content:
        path.write_bytes(content[kind])
    else:
        ramp().save(path, kind.upper())
    with pytest.raises(ImageError, match=f"cannot be read as an image.*{FORMATS[0]}"):
        open_image(DOORS[door](path))


REFUSED: dict[str, tuple[Any, str]] = {
    "no bytes": (b"", "empty"),
    "an empty file object": (io.BytesIO(), "empty"),
    "a text file object": (io.StringIO("x"), "mode 'rb'"),
    "a number": (3, "not int"),
    "nothing": (None, "not NoneType"),
    "a column without anything": ({"bytes": None, "path": None}, "not NoneType"),
    "an address": ("https://example.org/a.png", "does not fetch"),
    "a data URI without data": ("data:image/png;base64", "comma"),
    "a data URI that is no base64": ("data:image/png;base64,*", "base64"),
    "a name that is too long": ("x" * 5000, "no image file"),
    "a name with a null character": ("a\0.png", "no image file"),
    "a vector": (np.zeros(9), r"shape \[9\]"),
    "five channels": (np.zeros((9, 9, 5)), r"shape \[9, 9, 5\]"),
    "an empty array": (np.zeros((0, 9)), "empty"),
    "negative floats": (np.full((4, 4), -1.0), "scale them"),
    "not a number": (np.full((4, 4), np.nan), "scale them"),
    "infinite": (np.full((4, 4), np.inf), "scale them"),
    "floats beyond 255": (np.full((4, 4), 256.0), "scale them"),
    "integers beyond 16 bits": (np.full((4, 4), 65536), "scale them"),
    "complex numbers": (np.full((4, 4), 1j), "no numbers"),
    "text array": (np.full((4, 4), "a"), "no numbers"),
    "one pixel wide": (Image.new("RGB", (1, 5)), "at least 2"),
    "a ribbon": (Image.new("RGB", (2 * MAX_ASPECT + 1, 2)), "200 times"),
    "too many pixels, PIL": (Image.new("1", (10_000, 10_000)), "megapixels, the limit"),
    "too many pixels, array": (np.zeros((10_000, 10_000), dtype=bool), "megapixels, the limit"),
    "far too many pixels, array": (np.broadcast_to(np.float64(0), (100_000, 100_000)), "too many pixels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    source, words = REFUSED[name]
    with pytest.raises(ImageError, match=words):
        open_image(source)


def test_the_widest_that_is_read() -> None:
    assert open_image(Image.new("RGB", (2 * MAX_ASPECT, 2))).size == (400, 2)


@pytest.mark.parametrize("door", DOORS)
def test_the_pixel_limit_holds_before_decoding(tmp_path: Path, door: str) -> None:
    """The data behind the header is damaged: only what is not decoded can be refused for its size."""
    Image.new("1", (9_000, 9_000)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[:60])
    if door == "PIL image, read":
        return
    with pytest.raises(ImageError, match="81 megapixels, the limit"):
        open_image(DOORS[door](tmp_path / "a.png"))
