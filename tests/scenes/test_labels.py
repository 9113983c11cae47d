"""Training labels of a scene worked out by hand: 4 cells wide, 3 high."""

from __future__ import annotations

import numpy as np

from foveate.scenes import Field, Glyph, Scene, Shape
from foveate.scenes.labels import BLANK, COLUMN, IGNORE, box_cells, dense, local_characters, text_cells
from foveate.scenes.palette import CHARACTERS, COLOR_NAMES, KEYS, SHAPES

STAR = Shape("red", "star", "7K", (28, 28, 56, 56))
DISC = Shape("blue", "circle", "5", (84, 30, 112, 56))
TOTAL = Field("total", "42", (2, 60, 50, 78), (60, 60, 80, 78))
GLYPHS = [Glyph("7", 38, 42), Glyph("K", 46, 43), Glyph("5", 98, 42), Glyph("4", 65, 69), Glyph("2", 75, 69)]
SCENE = Scene("by hand", 112, 84, [STAR, DISC], [TOTAL], GLYPHS)
_CHARS = slice(COLUMN["char0"], COLUMN["char0"] + 3)


def where(labels, name, value):
    return {(int(r), int(c)) for r, c in np.argwhere(labels[..., COLUMN[name]] == value)}


def spelled(text):
    return [CHARACTERS.index(c) for c in text] + [BLANK] * (3 - len(text))


def test_every_cell_says_what_it_shows():
    labels = dense(SCENE)
    assert labels.shape[:2] == (3, 4)
    assert where(labels, "kind", 1) == {(1, 1), (1, 3)}
    assert where(labels, "kind", 2) == {(2, 0), (2, 1)}
    assert where(labels, "kind", 3) == {(2, 2)}
    assert where(labels, "center", 1) == {(1, 1), (1, 3)}
    assert where(labels, "color", COLOR_NAMES.index("red")) == {(1, 1)}
    assert where(labels, "shape", SHAPES.index("circle")) == {(1, 3)}
    assert where(labels, "key", KEYS.index("total")) == {(2, 0), (2, 1), (2, 2)}
    assert labels[1, 1, _CHARS].tolist() == spelled("7K")
    assert labels[2, 2, _CHARS].tolist() == spelled("42")
    assert (labels[2, 0, _CHARS] == IGNORE).all()
    assert (labels[0, 0, 2:] == IGNORE).all()


def test_neighbours_are_named_from_both_sides():
    labels = dense(SCENE)
    assert where(labels, "color right of", COLOR_NAMES.index("blue")) == {(1, 1)}
    assert where(labels, "shape left of", SHAPES.index("star")) == {(1, 3)}
    assert (labels[..., COLUMN["color above"]] == IGNORE).all()


def test_finer_cells_cover_the_same_places():
    """Cells of 14 px: `scale` 2 in both directions; 1 by 2 stretches one."""
    labels = dense(SCENE, (2.0, 2.0))
    assert labels.shape[:2] == (6, 8)
    assert where(labels, "color", COLOR_NAMES.index("red")) == {(2, 2), (2, 3), (3, 2), (3, 3)}
    assert where(labels, "center", 1) == {(3, 3), (3, 7)}
    assert where(dense(SCENE, (1.0, 2.0)), "color", COLOR_NAMES.index("red")) == {(2, 1), (3, 1)}


def test_characters_stand_in_their_own_cells():
    own = local_characters(SCENE.glyphs, 112, 84)
    assert own[1, 1].tolist() == spelled("7K")
    assert own[2, 2].tolist() == spelled("42")
    assert (own[0] == BLANK).all()
    finer = local_characters(SCENE.glyphs, 112, 84, (2.0, 2.0))
    assert finer[3, 2].tolist() == spelled("7")
    assert finer[3, 3].tolist() == spelled("K")
    two_lines = [Glyph("1", 10, 4), Glyph("2", 10, 24)]
    assert (local_characters(two_lines, 28, 28) == IGNORE).all()


def test_cells_of_boxes_and_lines():
    assert box_cells((28, 0, 84, 28), (3, 4)) == {(0, 1), (0, 2)}
    assert box_cells((26, 10, 30, 14), (3, 4)) == {(0, 1)}  # covers little of any: the cell of its middle
    assert text_cells((0, 20, 84, 30), (3, 4)) == {(0, 0), (0, 1), (0, 2)}
