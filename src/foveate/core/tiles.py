"""Where the tiles of a picture lie in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foveate.core.grid import Grid


class Box(NamedTuple):
    """A part of a picture, in shares of its height and width."""

    top: float = 0.0
    left: float = 0.0
    bottom: float = 1.0
    right: float = 1.0


Panel = list[tuple[int, Box]]
"""Grids (by number) that cover the picture once, and where."""


def panels(grids: Sequence[Grid], width: float, height: float, across: int | None = None) -> list[Panel]:
    """How the grids of one image cover it, the finest cover first.

    One grid is the whole picture; a thumbnail and a stitched grid are two covers. Several grids of one size are tiles
    with the whole picture behind them, as all models that cut pictures into equal tiles order them; how many are side
    by side follows from the picture's aspect ratio, as in these models.

    Args:
        width, height: of the picture, in any unit.
        across: tiles side by side, if that is known.
    """
    if len(grids) == 1:
        return [[(0, Box())]]
    if len({grid[1:] for grid in grids}) > 1:
        finest_first = sorted(range(len(grids)), key=lambda number: -grids[number].size)
        return [[(number, Box())] for number in finest_first]
    tiles = len(grids) - 1
    if tiles == 1:
        return [[(number, Box())] for number in range(2)]
    down, across = (tiles // across, across) if across else arrangement(tiles, width / height)
    cut = [
        (number, Box(row / down, col / across, (row + 1) / down, (col + 1) / across))
        for number, (row, col) in enumerate((row, col) for row in range(down) for col in range(across))
    ]
    return [cut, [(tiles, Box())]]


def arrangement(tiles: int, aspect: float) -> tuple[int, int]:
    """(rows, columns) of so many tiles, nearest to a picture's width over height."""
    pairs = [(tiles // across, across) for across in range(1, tiles + 1) if tiles % across == 0]
    return min(pairs, key=lambda pair: abs(pair[1] / pair[0] - aspect))


def covers(grids: Sequence[Grid], across: int | None = None) -> tuple[tuple[int, int], list[Box]]:
    """Rows and columns of the finest cover of an image in tokens, and the part of the image that each grid covers.

    Tiles of which it is not known how many are side by side are arranged as nearly square as their number allows.
    """
    found = panels(grids, 1, 1, across)
    boxes = dict(pair for panel in reversed(found) for pair in panel)
    number, box = found[0][0]
    rows = round(grids[number].h / (box.bottom - box.top))
    columns = round(grids[number].w / (box.right - box.left))
    return (rows, columns), [boxes[number] for number in range(len(grids))]


def places(grids: Sequence[Grid], images: Sequence[tuple[int, int | None]], device: torch.device) -> tuple[Tensor, int]:
    """`[N, 3]` float32 (frame, row, column) of the middles of all tokens in their whole picture, in tokens of the
    finest grid that covers it, and the longer side of the largest such cover. A thumbnail lies over the whole picture.

    Args:
        images: grids of every image, and its tiles side by side (None: unknown); empty: every grid is an image.
    """
    parts, longest, start = [], 1, 0
    for count, across in images or ((1, None),) * len(grids):
        own = grids[start : start + count]
        start += count
        size, boxes = covers(own, across)
        longest = max(longest, *size)
        parts += [_within(grid, box, size) for grid, box in zip(own, boxes, strict=True)]
    return torch.from_numpy(np.concatenate(parts)).to(device), longest


def _within(grid: Grid, box: Box, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Places of a grid's tokens in a cover of so many rows and columns."""
    frame, row, column = grid.raster().T.astype(np.float32)
    down, right = (box.bottom - box.top) * size[0] / grid.h, (box.right - box.left) * size[1] / grid.w
    row = box.top * size[0] + row * down + (down - 1) / 2
    column = box.left * size[1] + column * right + (right - 1) / 2
    return np.stack([frame, row, column], axis=1)
