"""Where tiles lie in a picture, and where their tokens lie in it."""

from __future__ import annotations

import pytest
import torch

from foveate import View
from foveate.core.grid import ColumnGrid, Grid
from foveate.core.tiles import covers, places

CPU = torch.device("cpu")


def test_an_image_of_one_grid_has_its_positions() -> None:
    view = View.of(torch.randn(12, 2), grid=(2, 2, 3))
    found, longest = view.places()
    assert torch.equal(found.long(), view.positions())
    assert longest == 3


@pytest.mark.parametrize("across", [None, 3, 1])
def test_tiles_lie_beside_one_another(across: int | None) -> None:
    grids = [Grid(1, 2, 2)] * 4  # three tiles and a thumbnail
    (rows, columns), boxes = covers(grids, across)
    beside = across or 1  # as near to a square as three tiles can be: one way or the other
    assert (rows, columns) in {(2 * 3 // beside, 2 * beside), (2, 6)}
    assert boxes[-1] == (0, 0, 1, 1)
    found, longest = places(grids, [(4, across)], CPU)
    assert longest == 6
    tokens = found[:12, 1:].long().tolist()
    assert len({tuple(token) for token in tokens}) == 12  # no two at one place
    middle = found[12:, 1:].mean(0)
    assert torch.equal(middle, torch.tensor([(rows - 1) / 2, (columns - 1) / 2]))


def test_a_thumbnail_lies_over_a_stitched_picture() -> None:
    found, longest = places([Grid(1, 2, 2), Grid(1, 4, 8)], [(2, None)], CPU)
    assert longest == 8
    assert found[:4, 1:].tolist() == [[0.5, 1.5], [0.5, 5.5], [2.5, 1.5], [2.5, 5.5]]
    assert found[4:, 1:].long().tolist() == [[row, column] for row in range(4) for column in range(8)]


def test_two_images_do_not_share_a_picture() -> None:
    found, _ = places([Grid(1, 1, 2), ColumnGrid(1, 2, 2)], [], CPU)
    assert found[:, 1:].tolist() == [[0, 0], [0, 1], [0, 0], [1, 0], [0, 1], [1, 1]]
