"""Where the tiles of a picture lie in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from foveate.core.grid import Grid


class Box(NamedTuple):
    """A part of a picture, in shares of its height and width."""

    top: float = 0.0
    left: float = 0.0
    bottom: float = 1.0
    right: float = 1.0


Panel = list[tuple[int, Box]]
"""Grids (by number) that cover the picture once, and where."""


def panels(grids: Sequence[Grid], width: int, height: int) -> list[Panel]:
    """How the grids of one image cover it, the finest cover first.

    One grid is the whole picture; a thumbnail and a stitched grid are two covers. Several grids of one size are tiles
    with the whole picture behind them, as all models that cut pictures into equal tiles order them; how many are side
    by side follows from the picture's aspect ratio, as in these models.
    """
    if len(grids) == 1:
        return [[(0, Box())]]
    if len({grid[1:] for grid in grids}) > 1:
        finest_first = sorted(range(len(grids)), key=lambda number: -grids[number].size)
        return [[(number, Box())] for number in finest_first]
    tiles = len(grids) - 1
    if tiles == 1:
        return [[(number, Box())] for number in range(2)]
    down, across = arrangement(tiles, width / height)
    cut = [
        (number, Box(row / down, col / across, (row + 1) / down, (col + 1) / across))
        for number, (row, col) in enumerate((row, col) for row in range(down) for col in range(across))
    ]
    return [cut, [(tiles, Box())]]


def arrangement(tiles: int, aspect: float) -> tuple[int, int]:
    """(rows, columns) of so many tiles, nearest to a picture's width over height."""
    pairs = [(tiles // across, across) for across in range(1, tiles + 1) if tiles % across == 0]
    return min(pairs, key=lambda pair: abs(pair[1] / pair[0] - aspect))
