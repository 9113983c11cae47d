"""Stitched pictures: what is inferred from features is what the pictures' sizes say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import foveate
from foveate.core.view import Tap
from foveate.families.unpadded import Unpadded
from tests.families.reference import generate
from tests.families.test_signals import Reads
from tests.families.tiny import build
from tests.families.types import TABLE

PINS = {
    "llava_next": ([[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]], 336, 14, None),
    "llava_onevision": ([[384 * h, 384 * w] for h in range(1, 7) for w in range(1, 7)], 384, 14, "anyres_max_9"),
}
"""Published ways to cut, the side of a tile and of a patch, and what limits the tokens."""


def family(name: str) -> Any:
    pins, tile, patch, most = PINS[name]
    found = object.__new__(Unpadded)
    vision = SimpleNamespace(image_size=tile, patch_size=patch)
    found.name, found.config = (
        name,
        SimpleNamespace(vision_config=vision, image_grid_pinpoints=pins, vision_aspect_ratio=most),
    )
    found.parts = SimpleNamespace(base=SimpleNamespace(image_newline=torch.full((2,), 7.0)))
    return found


FAMILIES = {name: family(name) for name in PINS}


@pytest.mark.parametrize("name", PINS)
@settings(max_examples=300, deadline=None)
@given(height=st.integers(40, 3000), width=st.integers(40, 3000))
def test_a_picture_is_told_by_its_newlines(name: str, height: int, width: int) -> None:
    own = FAMILIES[name]
    picture = own._stitched(height, width)
    if min(picture.rows, picture.columns) < 1:
        return  # a strip of which no patch is left
    assert picture in own._candidates
    shape = own._shape(picture)
    features = torch.zeros(shape.size, 2)
    features[list(shape.fixed)] = 7.0
    assert own.shape("image", shape.size, (), features).grids == shape.grids
    assert shape.tiles in own.tower_counts("image", shape, ())


@pytest.mark.parametrize("name", ["llava_next", pytest.param("llava_onevision", marks=pytest.mark.families)])
def test_pictures_of_several_sizes_are_read_each_by_itself(name: str) -> None:
    """In a row and in rows of a batch, in either order: every picture reads what it reads alone."""
    model, tap = build(name), Tap("received")

    def read(rows: list[Any]) -> list[torch.Tensor]:
        method = Reads((0,), (tap,))
        with foveate.prune(model, method):
            generate(model, TABLE[name].batch(rows), 1)
        return [values for _, values in method.found]

    wide, tall = ("image", 2, 3), ("image", 3, 2)
    first, second = read([[4, wide, 3]])[0], read([[4, tall, 3]])[0]
    assert len(first) != len(second)
    assert [len(found) for found in read([[4, wide, 3, tall, 2]])] == [len(first), len(second)]
    for rows in ([[4, wide, 3], [4, tall, 3]], [[4, tall, 3], [4, wide, 3]]):
        expected = [first, second] if rows[0][1] == wide else [second, first]
        for found, wanted in zip(read(rows), expected, strict=True):
            torch.testing.assert_close(found, wanted)
