"""Evidence boxes: units that can be true, and those that cannot."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.data.boxes import BoxError, BoxFormat, read_boxes

SIZE = (200, 100)

READ: dict[str, tuple[Any, BoxFormat, list]] = {
    "pixels": ([[0, 10, 100, 50]], "pixel", [(0, 0.1, 0.5, 0.5)]),
    "pixels, left top width height": ([[100, 10, 100, 50]], "pixel_xywh", [(0.5, 0.1, 1, 0.6)]),
    "fractions": ([[0, 0.1, 0.5, 1]], "normalized", [(0, 0.1, 0.5, 1)]),
    "all of the image, as fractions": ([[0, 0, 1, 1]], "normalized", [(0, 0, 1, 1)]),
    "thousandths": ([[0, 100, 500, 1000]], "thousandths", [(0, 0.1, 0.5, 1)]),
    "two pixels": ([[0, 0, 2, 2]], "pixel", [(0, 0, 0.01, 0.02)]),
    "fractions of a pixel": ([[0.5, 0.5, 1.5, 1.5]], "pixel", [(0.0025, 0.005, 0.0075, 0.015)]),
    "tuples": (((0, 10, 100, 50),), "pixel", [(0, 0.1, 0.5, 0.5)]),
    "none": ([], "pixel", []),
    "none, for one image": ([[]], "pixel", []),
    "one image's own list": ([[[0, 10, 100, 50]]], "pixel", [(0, 0.1, 0.5, 0.5)]),
}


@pytest.mark.parametrize("case", READ)
def test_true_units(case: str) -> None:
    raw, box_format, expected = READ[case]
    (found,) = read_boxes(raw, [SIZE], box_format)
    assert [pytest.approx(box) for box in found] == expected


REFUSED: dict[str, tuple[Any, BoxFormat, str]] = {
    "fractions as pixels": ([[0.1, 0.2, 0.5, 0.9]], "pixel", "declared as pixel.*normalized"),
    "all of the image as pixels": ([[0, 0, 1, 1]], "pixel", "declared as pixel.*normalized"),
    "fractions as width and height": ([[0.1, 0.2, 0.5, 0.5]], "pixel_xywh", "declared as pixel_xywh.*normalized"),
    "fractions as thousandths": ([[0.1, 0.2, 0.5, 0.5]], "thousandths", "declared as thousandths.*normalized"),
    "one of several": ([[0, 10, 100, 50], [0.1, 0.2, 0.5, 0.5]], "pixel", "declared as pixel"),
    "pixels as fractions": ([[0, 10, 100, 50]], "normalized", "outside the image"),
    "thousandths as fractions": ([[0, 100, 500, 999]], "normalized", "outside the image"),
    "thousandths as pixels": ([[0, 100, 500, 999]], "pixel", "outside the image"),
    "pixels of a larger image": ([[0, 0, 1200, 90]], "thousandths", "outside the image"),
    "width and height as pixels": ([[150, 60, 40, 30]], "pixel", "is empty"),
    "pixels as width and height": ([[100, 50, 190, 90]], "pixel_xywh", "outside the image"),
    "negative width": ([[100, 50, -10, 10]], "pixel_xywh", "is empty"),
    "from right to left": ([[100, 10, 50, 50]], "pixel", "is empty"),
    "upside down": ([[10, 50, 50, 10]], "pixel", "is empty"),
    "no area": ([[10, 10, 10, 50]], "pixel", "is empty"),
    "left of the image": ([[-5, 10, 50, 50]], "pixel", "outside the image"),
    "below the image": ([[0, 10, 50, 101]], "pixel", "outside the image"),
    "text": ([["0", "10", "100", "50"]], "pixel", "four numbers"),
    "a box as text": (["0,10,100,50"], "pixel", "four numbers"),
    "all as text": ("[[0, 10, 100, 50]]", "pixel", "not a list but str"),
    "an object": ({"x": 1}, "pixel", "not a list but dict"),
    "objects": ([{"x": 1}], "pixel", "four numbers"),
    "null": ([[0, 10, None, 50]], "pixel", "four numbers"),
    "a truth value": ([[0, 10, True, 50]], "pixel", "four numbers"),
    "not a number": ([[0, 10, float("nan"), 50]], "pixel", "four numbers"),
    "infinite": ([[0, 10, float("inf"), 50]], "pixel", "four numbers"),
    "three numbers": ([[0, 10, 100]], "pixel", "four numbers"),
    "five numbers": ([[0, 10, 100, 50, 1]], "pixel", "four numbers"),
    "one box without its list": ([0, 10, 100, 50], "pixel", "four numbers"),
    "two images' lists": ([[[0, 10, 100, 50]], []], "pixel", "for 2 images, but there are 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_units_that_cannot_be_true(case: str) -> None:
    raw, box_format, words = REFUSED[case]
    with pytest.raises(BoxError, match=words):
        read_boxes(raw, [SIZE], box_format)


def test_one_list_for_each_of_several_images() -> None:
    assert read_boxes([[[0, 0, 20, 50]], []], [SIZE, SIZE], "pixel") == (((0, 0, 0.1, 0.5),), ())
    for raw, words in [([[0, 0, 20, 50]] * 2, "four numbers"), ([[[0, 0, 20, 50]], None], "not a list but NoneType")]:
        with pytest.raises(BoxError, match=words):
            read_boxes(raw, [SIZE, SIZE], "pixel")


@given(st.tuples(*[st.integers(0, 198)] * 2, *[st.integers(2, 200)] * 2), st.integers(200, 3000))
def test_every_unit_names_the_same_box(box: tuple[int, int, int, int], side: int) -> None:
    x, y, width, height = box
    right, bottom = min(x + width, 200), min(y + height, 200)
    same = {
        "pixel": [x, y, right, bottom],
        "pixel_xywh": [x, y, right - x, bottom - y],
        "normalized": [v / side for v in (x, y, right, bottom)],
        "thousandths": [1000 * v / side for v in (x, y, right, bottom)],
    }
    found = [
        read_boxes([values], [(side, side)], unit)[0][0]  # type: ignore[arg-type]
        for unit, values in same.items()
        if max(values) > 1 or unit == "normalized"
    ]
    assert all(other == pytest.approx(found[0]) for other in found)
