"""Dense training labels: what each merged visual token (28 x 28 px) shows. See `zoo/README.md`, stage V."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from .palette import CHARACTERS, COLOR_NAMES, DIRECTIONS, KEYS, MAX_CHARACTERS, SHAPES
from .relations import neighbour
from .scene import Box, Glyph, Scene, Shape

CELL = 28
IGNORE = -100
BLANK = len(CHARACTERS)
KINDS = ["ground", "shape", "key", "value"]
CLASSES = {
    "kind": len(KINDS),
    "center": 2,
    "color": len(COLOR_NAMES),
    "shape": len(SHAPES),
    "key": len(KEYS),
    **{f"char{i}": BLANK + 1 for i in range(MAX_CHARACTERS)},
    **{f"color {d}": len(COLOR_NAMES) for d in DIRECTIONS},
    **{f"shape {d}": len(SHAPES) for d in DIRECTIONS},
}
COLUMN = {name: i for i, name in enumerate(CLASSES)}
_CHARS = slice(COLUMN["char0"], COLUMN["char0"] + MAX_CHARACTERS)
Cell = tuple[int, int]
Scale = tuple[float, float]


def dense(scene: Scene, scale: Scale = (1.0, 1.0)) -> NDArray[np.int16]:
    """Labels `[rows, columns, len(CLASSES)]`, `IGNORE` where a class does not apply.

    `scale` (x, y) turns the scene's pixels into pixels of cells of 28, for models with other tokens.
    """
    grid = round(scene.height * scale[1]) // CELL, round(scene.width * scale[0]) // CELL
    out = np.full((*grid, len(CLASSES)), IGNORE, np.int16)
    out[..., COLUMN["kind"]] = out[..., COLUMN["center"]] = 0
    for field in scene.fields:
        for cell in text_cells(scaled(field.key_box, scale), grid):
            _set(out, cell, kind=2, key=KEYS.index(field.key))
            out[cell][_CHARS] = IGNORE
        for cell in text_cells(scaled(field.value_box, scale), grid):
            _set(out, cell, kind=3, key=KEYS.index(field.key))
            out[cell][_CHARS] = _spell(field.value)
    for shape in scene.shapes:
        _label_shape(out, scene, shape, grid, scale)
    return out


def _label_shape(out: NDArray[np.int16], scene: Scene, shape: Shape, grid: Cell, scale: Scale) -> None:
    beside = {}
    for direction in DIRECTIONS:
        if other := neighbour(scene, shape, direction):
            beside[f"color {direction}"] = COLOR_NAMES.index(other.color)
            beside[f"shape {direction}"] = SHAPES.index(other.shape)
    for cell in box_cells(scaled(shape.box, scale), grid):
        _set(
            out,
            cell,
            kind=1,
            color=COLOR_NAMES.index(shape.color),
            shape=SHAPES.index(shape.shape),
            key=IGNORE,
        )
        _set(out, cell, **beside)
        out[cell][_CHARS] = _spell(shape.label)
    x, y = shape.center[0] * scale[0], shape.center[1] * scale[1]
    _set(out, (int(y // CELL), int(x // CELL)), center=1)


def _set(out: NDArray[np.int16], cell: Cell, **values: int) -> None:
    for name, value in values.items():
        out[cell][COLUMN[name]] = value


def _spell(text: str) -> list[int]:
    return [CHARACTERS.index(c) for c in text] + [BLANK] * (MAX_CHARACTERS - len(text))


def scaled(box: Box, scale: Scale) -> Box:
    """`box` with its coordinates multiplied by `scale` (x, y)."""
    return box[0] * scale[0], box[1] * scale[1], box[2] * scale[0], box[3] * scale[1]


def local_characters(glyphs: Iterable[Glyph], width: int, height: int, scale: Scale = (1.0, 1.0)) -> NDArray[np.int16]:
    """Characters whose middle lies in each cell, left to right, case folded: `[rows, columns, 3]`.

    `IGNORE` where a cell holds more than three or parts of two lines.
    """
    rows, columns = round(height * scale[1]) // CELL, round(width * scale[0]) // CELL
    out = np.full((rows, columns, MAX_CHARACTERS), BLANK, np.int16)
    inside: dict[Cell, list[Glyph]] = {}
    for glyph in glyphs:
        cell = int(glyph.y * scale[1] // CELL), int(glyph.x * scale[0] // CELL)
        if 0 <= cell[0] < rows and 0 <= cell[1] < columns:
            inside.setdefault(cell, []).append(glyph)
    for cell, found in inside.items():
        heights = [g.y for g in found]
        if len(found) > MAX_CHARACTERS or (max(heights) - min(heights)) * scale[1] > 9:
            out[cell] = IGNORE
            continue
        for i, glyph in enumerate(sorted(found, key=lambda g: g.x)):
            out[(*cell, i)] = CHARACTERS.index(glyph.character.upper())
    return out


def box_cells(box: Box, grid: Cell, share: float = 0.3) -> set[Cell]:
    """Cells (row, column) covered by `box` at least to `share`, and the cell of its middle."""
    found = {(r, c) for r, c, wide, high in _overlaps(box, grid) if wide * high >= share * CELL * CELL}
    middle = (box[1] + box[3]) / 2 // CELL, (box[0] + box[2]) / 2 // CELL
    return found | {(min(grid[0] - 1, int(middle[0])), min(grid[1] - 1, int(middle[1])))}


def text_cells(box: Box, grid: Cell) -> set[Cell]:
    """Cells that show a line of text: they hold 40 % of its height and 30 % of their own width of it."""
    width, height = max(1.0, box[2] - box[0]), max(1.0, box[3] - box[1])
    return {(r, c) for r, c, x, y in _overlaps(box, grid) if y >= 0.4 * height and x >= 0.3 * min(CELL, width)}


def _overlaps(box: Box, grid: Cell) -> Iterable[tuple[int, int, float, float]]:
    x0, y0, x1, y1 = box
    for row in range(max(0, int(y0 // CELL)), min(grid[0] - 1, int(y1 // CELL)) + 1):
        high = min(y1, (row + 1) * CELL) - max(y0, row * CELL)
        for column in range(max(0, int(x0 // CELL)), min(grid[1] - 1, int(x1 // CELL)) + 1):
            yield row, column, min(x1, (column + 1) * CELL) - max(x0, column * CELL), high
