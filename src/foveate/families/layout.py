"""How the visual tokens of one image lie: its grids, and the tokens among them that always stay."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.core.grid import Grid


@dataclass(frozen=True)
class ImageShape:
    """The tokens of one image (or tile) in the language model.

    Attributes:
        grids: of the tokens that can be chosen, in the order of the sequence.
        fixed: places, among all its tokens, of those that always stay: newlines, separators, class tokens.
    """

    grids: tuple[Grid, ...]
    fixed: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        return sum(grid.size for grid in self.grids) + len(self.fixed)


def shape_of(size: int, grid: Grid | None, exact: bool) -> ImageShape:
    """The shape of `size` tokens that the tower gave as `grid`; a class token may come first.

    Args:
        exact: whether the grid is known to be right, so that another size is a fault of the input.
    """
    if grid is not None and grid.size + 1 == size:
        return ImageShape((grid,), (0,))
    if grid is not None and (exact or grid.size == size):
        return ImageShape((grid,))
    return ImageShape((square(size),))


def square(n: int) -> Grid:
    """A grid of `n` tokens of which nothing is known: square if it can be."""
    root = round(n**0.5)
    return Grid(1, root, root) if root * root == n else Grid(1, 1, n)
