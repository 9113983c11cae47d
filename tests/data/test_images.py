"""One opener: the same pixels through every door, whatever the file's depth, colours and orientation."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from foveate.data.images import open_image

DOORS: dict[str, Callable[[Path], Any]] = {
    "path": lambda path: path,
    "text": str,
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "file object": lambda path: io.BytesIO(path.read_bytes()),
    "file object at its end": lambda path: _at_end(path.read_bytes()),
    "data URI": lambda path: "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode(),
    "PIL image, not yet read": Image.open,
    "PIL image, read": lambda path: _loaded(path),
    "column with bytes": lambda path: {"bytes": path.read_bytes(), "path": None},
    "column with path": lambda path: {"bytes": None, "path": str(path)},
}


def _at_end(data: bytes) -> io.BytesIO:
    stream = io.BytesIO()
    stream.write(data)
    return stream


def _loaded(path: Path) -> Image.Image:
    image = Image.open(path)
    image.load()
    return image


def pixels(source: Any) -> list:
    image = open_image(source)
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


def ramp(mode: str = "RGB", size: tuple[int, int] = (7, 5)) -> Image.Image:
    """No two pixels alike, so that every turn shows."""
    values = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3) * 2
    return Image.fromarray(values).convert(mode)


def with_orientation(image: Image.Image, orientation: int) -> Image.Exif:
    exif = image.getexif()
    exif[0x0112] = orientation
    return exif


def grey16(*values: int) -> Image.Image:
    return Image.fromarray(np.array([values, values], dtype=np.uint16))


def grey(*values: int) -> list:
    return [[[v, v, v] for v in values]] * 2


def two(*colours: tuple[int, ...], mode: str) -> Image.Image:
    image = Image.new(mode, (len(colours), 2))
    for x, colour in enumerate(colours):
        for y in (0, 1):
            image.putpixel((x, y), colour if len(colour) > 1 else colour[0])
    return image


def palette(**info: Any) -> Image.Image:
    image = Image.new("P", (2, 2))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.putpixel((1, 1), 1)
    image.info |= info
    return image


FILES: dict[str, tuple[str, Image.Image, dict, list]] = {
    "RGB PNG": ("png", two((1, 2, 3), (250, 0, 9), mode="RGB"), {}, [[[1, 2, 3], [250, 0, 9]]] * 2),
    "RGB BMP": ("bmp", two((1, 2, 3), (250, 0, 9), mode="RGB"), {}, [[[1, 2, 3], [250, 0, 9]]] * 2),
    "RGB WebP": ("webp", two((1, 2, 3), (250, 0, 9), mode="RGB"), {"lossless": True}, [[[1, 2, 3], [250, 0, 9]]] * 2),
    "grey PNG": ("png", two((7,), (200,), mode="L"), {}, grey(7, 200)),
    "one bit": ("png", two((0,), (1,), mode="1").convert("1"), {}, grey(0, 255)),
    "palette": ("png", palette(), {}, [[[255, 0, 0], [0, 0, 255]]] * 2),
    "palette, one colour transparent": ("png", palette(), {"transparency": 0}, [[[255, 255, 255], [0, 0, 255]]] * 2),
    "palette, half transparent": (
        "png", palette(), {"transparency": bytes([255, 127])}, [[[255, 0, 0], [128, 128, 255]]] * 2
    ),
    "GIF, one colour transparent": ("gif", palette(), {"transparency": 0}, [[[255, 255, 255], [0, 0, 255]]] * 2),
    "RGB, one colour transparent": (
        "png", two((1, 2, 3), (9, 9, 9), mode="RGB"), {"transparency": (9, 9, 9)}, [[[1, 2, 3], [255] * 3]] * 2
    ),
    "RGBA": ("png", two((0, 0, 0, 0), (200, 0, 0, 255), mode="RGBA"), {}, [[[255] * 3, [200, 0, 0]]] * 2),
    "RGBA WebP": (
        "webp", two((0, 0, 0, 0), (200, 0, 0, 255), mode="RGBA"), {"lossless": True}, [[[255] * 3, [200, 0, 0]]] * 2
    ),
    "grey with alpha": ("png", two((0, 0), (0, 127), mode="LA"), {}, grey(255, 128)),
    "16-bit grey PNG": ("png", grey16(0, 257, 32768, 65535), {}, grey(0, 1, 128, 255)),
    "dark 16-bit grey PNG": ("png", grey16(0, 200, 255, 256), {}, grey(0, 0, 0, 1)),
    "16-bit grey TIFF": ("tif", grey16(0, 257, 32768, 65535), {}, grey(0, 1, 128, 255)),
    "16-bit grey TIFF, white is zero": (
        "tif", grey16(0, 257, 32768, 65535), {"tiffinfo": {262: 0}}, grey(255, 254, 127, 0)
    ),
    "float TIFF": ("tif", Image.fromarray(np.float32([[0, 0.2, 1]] * 2)), {}, grey(0, 51, 255)),
    "float TIFF up to 255": ("tif", Image.fromarray(np.float32([[0, 2, 254.6]] * 2)), {}, grey(0, 2, 255)),
    "32-bit integer TIFF": ("tif", Image.fromarray(np.int32([[0, 257, 65535]] * 2)), {}, grey(0, 1, 255)),
    "32-bit integer TIFF up to 255": ("tif", Image.fromarray(np.int32([[0, 77, 255]] * 2)), {}, grey(0, 77, 255)),
    "CMYK TIFF": ("tif", two((0, 0, 0, 0), (0, 255, 255, 0), mode="CMYK"), {}, [[[255] * 3, [255, 0, 0]]] * 2),
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_through_every_door(tmp_path: Path, name: str, door: str) -> None:
    suffix, image, options, expected = FILES[name]
    image.save(tmp_path / f"a.{suffix}", **options)
    assert pixels(DOORS[door](tmp_path / f"a.{suffix}")) == expected


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_through_every_door(tmp_path: Path, orientation: int, suffix: str, door: str) -> None:
    turns = Image.Transpose
    undo = {2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM, 5: turns.TRANSPOSE,
            6: turns.ROTATE_270, 7: turns.TRANSVERSE, 8: turns.ROTATE_90}  # fmt: skip
    image, path = ramp(), tmp_path / f"a.{suffix}"
    image.save(path, exif=with_orientation(image, orientation), quality=100, lossless=True)
    plain = tmp_path / f"plain.{suffix}"
    image.save(plain, quality=100, lossless=True)
    with Image.open(plain) as stored:
        expected = stored.convert("RGB")
    expected = expected.transpose(undo[orientation]) if orientation in undo else expected
    assert pixels(DOORS[door](path)) == np.asarray(expected).tolist()


def test_lab_within_its_rounding(tmp_path: Path) -> None:
    two((255, 128, 128), (0, 128, 128), mode="LAB").save(tmp_path / "a.tif")
    assert np.abs(np.array(pixels(tmp_path / "a.tif")) - np.array(grey(255, 0))).max() <= 2


def test_16_bit_grey_is_turned_too(tmp_path: Path) -> None:
    image = grey16(0, 65535)
    image.save(tmp_path / "a.png", exif=with_orientation(image, 2))
    assert pixels(tmp_path / "a.png") == grey(255, 0)


def test_12_bit_tiff(tmp_path: Path) -> None:
    """Pillow reads 12 bits as 16 and leaves them dark."""
    packed = bytes([0xFF, 0xF8, 0x00]) * 2  # 4095, 2048
    entries = [(256, 2), (257, 2), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 2), (279, len(packed))]
    head = b"II*\0" + (8 + len(packed)).to_bytes(4, "little") + packed + len(entries).to_bytes(2, "little")
    directory = b"".join(
        tag.to_bytes(2, "little") + (4).to_bytes(2, "little") + (1).to_bytes(4, "little") + value.to_bytes(4, "little")
        for tag, value in entries
    )
    (tmp_path / "a.tif").write_bytes(head + directory + bytes(4))
    assert pixels(tmp_path / "a.tif") == grey(255, 128)


def test_a_transparent_value_of_16_bits(tmp_path: Path) -> None:
    grey16(0, 300, 65535).save(tmp_path / "a.png", transparency=300)
    assert pixels(tmp_path / "a.png") == grey(0, 255, 255)


MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_a_pil_image(mode: str) -> None:
    start = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode, "RGB")  # the only way that Pillow knows
    image = Image.new("RGB", (4, 4), "white").convert(start).convert(mode)
    assert image.mode == mode
    assert pixels(image) == [[[255] * 3] * 4] * 4


def test_premultiplied_grey_keeps_its_alpha() -> None:
    image = two((0, 0), (0, 127), mode="LA").convert("La")
    assert pixels(image) == grey(255, 128)


def test_a_picture_of_several_photographs(tmp_path: Path) -> None:
    """What telephones write as .jpg is often MPO."""
    ramp().save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[ramp()], quality=100)
    assert open_image(tmp_path / "a.jpg").size == (7, 5)


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert open_image(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


def test_damaged_exif_is_no_exif(tmp_path: Path) -> None:
    ramp().save(tmp_path / "a.png", exif=b"Exif\0\0nonsense")
    assert pixels(tmp_path / "a.png") == np.asarray(ramp()).tolist()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.one_of(
        *(
            arrays(kind, st.tuples(*[st.integers(2, 6)] * 2, *([st.sampled_from((2, 3, 4))] * deep)))
            for kind, deep in [(np.uint8, 0), (np.uint8, 1), (np.uint16, 0), (np.bool_, 0)]
        )
    ),
    door=st.sampled_from(sorted(DOORS)),
    orientation=st.integers(1, 8),
)
def test_a_door_never_changes_pixels(tmp_path: Path, values: np.ndarray, door: str, orientation: int) -> None:
    image = Image.fromarray(values)
    path = tmp_path / "a.png"
    image.save(path, exif=with_orientation(image, orientation))
    through = open_image(DOORS[door](path))
    assert pixels(through) == pixels(path) == np.asarray(through).tolist()
    if orientation == 1:
        assert pixels(values) == pixels(path)


@settings(max_examples=60, deadline=None)
@given(values=arrays(np.uint8, st.tuples(st.integers(2, 6), st.integers(2, 6), st.just(3))))
def test_arrays_of_every_type_mean_the_same(values: np.ndarray) -> None:
    expected = values.tolist()
    for same in (values.astype(np.int64), values / np.float32(255), values / 255, values.astype(np.uint16) * 257):
        if same.dtype.kind != "i" or values.max() > 0:
            assert pixels(same) == expected
    assert pixels(values.copy(order="F")) == expected


def test_channels_first_where_nothing_else_can_be_meant() -> None:
    values = np.asarray(ramp())
    assert pixels(values.transpose(2, 0, 1)) == values.tolist()
    assert pixels(values[:, :, :1]) == np.repeat(values[:, :, :1], 3, axis=2).tolist()


def test_an_opened_file_or_image_stays_as_it_was(tmp_path: Path) -> None:
    ramp().save(tmp_path / "a.png", exif=with_orientation(ramp(), 6))
    with (tmp_path / "a.png").open("rb") as file:
        file.seek(3)
        assert pixels(file) == pixels(file)
        assert file.tell() == 3
    image = Image.open(tmp_path / "a.png")
    open_image(image)
    assert image.size == (7, 5)
    assert image.info


def test_a_data_uri_as_browsers_write_it() -> None:
    stream = io.BytesIO()
    ramp().save(stream, "PNG")
    text = base64.b64encode(stream.getvalue()).decode()
    for uri in ("data:;base64," + text, "DATA:image/png;base64," + text.replace("+", "%2B").rstrip("="),
                "data:image/png;base64,\n" + text[:30] + "\n" + text[30:]):  # fmt: skip
        assert pixels(uri) == np.asarray(ramp()).tolist()
