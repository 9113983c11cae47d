"""How the visual tokens of one image lie: its grids, and the tokens among them that always stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from foveate.core.grid import Grid


@dataclass(frozen=True)
class ImageShape:
    """The tokens of one image (or tile) in the language model.

    Attributes:
        grids: of the tokens that can be chosen, in the order of the sequence.
        fixed: places, among all its tokens, of those that always stay: newlines, separators, class tokens.
        across: tiles side by side, if it is cut into equal ones and that is known.
        tiles: images of the tower that it is made of.
        guessed: whether nothing but the number of its tokens was known.
    """

    grids: tuple[Grid, ...]
    fixed: tuple[int, ...] = ()
    across: int | None = None
    tiles: int = 1
    guessed: bool = field(default=False, compare=False)

    @property
    def size(self) -> int:
        return sum(grid.size for grid in self.grids) + len(self.fixed)


def shape_of(size: int, grids: Sequence[Grid], exact: bool) -> ImageShape:
    """The shape of `size` tokens that the tower gave as `grids`; a class token may come first, a newline behind every
    row, and a token at either end.

    Args:
        exact: whether the grids are known to be right, so that another size is a fault of the input.
    """
    total = sum(grid.size for grid in grids)
    if len(grids) == 1 and total + 1 == size:
        return ImageShape(tuple(grids), (0,))
    if len(grids) == 1 and grids[0].t == 1:
        _, h, w = grids[0]
        for ends in (0, 1):
            if h * (w + 1) + 2 * ends == size:
                newlines = [ends + row * (w + 1) + w for row in range(h)]
                return ImageShape(tuple(grids), tuple([0] * ends + newlines + [size - 1] * ends))
    if grids and (exact or total == size):
        return ImageShape(tuple(grids))
    return ImageShape((square(size),), guessed=True)


def shape_of_runs(places: Sequence[int], frames: bool) -> ImageShape:
    """The shape of an image of which only the places of its tokens in the prompt are known: one token between runs of
    equal length ends a row, more of them end a tile or frame.

    Args:
        frames: whether equal tiles are frames of a video.
    """
    lengths, gaps = [1], []
    for before, after in pairwise(places):
        if after == before + 1:
            lengths[-1] += 1
        else:
            lengths.append(1)
            gaps.append(after - before - 1)
    parts: list[list[int]] = [[lengths[0]]]
    for gap, length in zip(gaps, lengths[1:], strict=True):
        if gap == 1 and length == parts[-1][0]:
            parts[-1].append(length)
        else:
            parts.append([length])
    grids = [square(part[0]) if len(part) == 1 else Grid(1, len(part), part[0]) for part in parts]
    if frames and len(set(grids)) == 1:
        grids = [Grid(len(grids), *grids[0][1:])]
    return ImageShape(tuple(grids))


def square(n: int) -> Grid:
    """A grid of `n` tokens of which nothing is known: square if it can be."""
    root = round(n**0.5)
    return Grid(1, root, root) if root * root == n else Grid(1, 1, n)
