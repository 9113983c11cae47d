"""Visual tokens of one image as a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Grid(NamedTuple):
    """Visual tokens of one image as the language model sees them (after any patch merging)."""

    t: int
    h: int
    w: int

    @property
    def size(self) -> int:
        return self.t * self.h * self.w

    def coordinates(self, device: torch.device | str = "cpu") -> Tensor:
        """`[t*h*w, 3]` (frame, row, column) in the order of the tokens."""
        found = torch.from_numpy(self.raster())
        return found if torch.device(device).type == "cpu" else found.to(device)

    def raster(self) -> npt.NDArray[np.int64]:
        """`[t*h*w, 3]` the same on the host, in the order of the tokens."""
        return np.ascontiguousarray(np.indices(self).reshape(3, -1).T)

    @property
    def placed(self) -> bool:
        """Whether each token stands for a part of the picture."""
        return True

    @property
    def by_columns(self) -> bool:
        """Whether tokens run down the columns, not along the rows."""
        return False

    def windows(self, side: int) -> Tensor:
        """`[t*h*w]` number of the square window of each token in raster order, counted over all frames.

        Windows of `side` x `side` tokens are cut from the top left corner of a frame; those at the right and
        bottom edge may be smaller. This is how Qwen2.5-VL's tower cuts its attention windows.
        """
        frame, row, col = self.raster().T
        down, across = -(-self.h // side), -(-self.w // side)
        return torch.from_numpy((frame * down + row // side) * across + col // side)


class Unplaced(Grid):
    """Tokens that stand for no part of a picture: learned queries have read all of it."""

    __slots__ = ()

    @property
    def placed(self) -> bool:
        return False


class ColumnGrid(Grid):
    """A grid whose tokens run down its columns (some pixel shuffles turn a picture)."""

    __slots__ = ()

    @property
    def by_columns(self) -> bool:
        return True

    def raster(self) -> npt.NDArray[np.int64]:
        """`[t*h*w, 3]` (frame, row, column) in the order of the tokens."""
        return np.ascontiguousarray(super().raster().reshape(*self, 3).swapaxes(1, 2).reshape(-1, 3))


def frame_numbers(grids: Sequence[Grid], index: Tensor) -> Tensor:
    """`[n]` which frame the tokens `index` are in, counted from 0 over all grids: frames of a video, or tiles."""
    own, before = [], 0
    for grid in grids:
        own.append(grid.coordinates(index.device)[:, 0] + before)
        before += grid.t
    return torch.cat(own)[index]
