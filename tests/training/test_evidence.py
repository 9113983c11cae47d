"""Evidence boxes of pictures in tiles: the tokens that they touch, in whichever grid."""

from __future__ import annotations

import torch

import foveate
from foveate.core.grid import Grid
from foveate.training.evidence import EvidenceBoxes, touched
from tests.families.pictures import model_for, prompt
from tests.families.test_overlay import painted

BOX = (0.55, 0.1, 0.95, 0.4)


def test_a_box_touches_tokens_of_its_tile_and_of_the_thumbnail() -> None:
    tiles = [Grid(1, 4, 4)] * 7  # two rows of three, and the whole picture
    masks = [mask.view(4, 4) for mask in touched([BOX], tiles, across=3)]
    assert [bool(mask.any()) for mask in masks] == [False, True, True, False, False, False, True]
    assert masks[1].nonzero()[:, 1].min() == 2  # from 0.65 of the middle tile on
    assert masks[2].nonzero().amax(0).tolist() == [3, 3]
    assert masks[6].nonzero().tolist() == [[row, column] for row in (0, 1) for column in (2, 3)]


def test_a_stitched_picture_and_its_thumbnail_keep_the_same_part() -> None:
    model = model_for("llava_next")
    with foveate.prune(model, EvidenceBoxes([[[BOX]]], layer=1)) as trace, torch.no_grad():
        model.generate(**prompt("llava_next", painted(BOX)), max_new_tokens=1)
    (group,) = trace.last.groups
    thumbnail, stitched = group.grids
    kept = torch.zeros(group.grids[0].size + group.grids[1].size, dtype=torch.bool)
    alive = group.steps[-1].alive
    kept[alive[alive < len(kept)]] = True
    for grid, mask in zip((thumbnail, stitched), kept.split([thumbnail.size, stitched.size]), strict=True):
        rows, columns = mask.view(grid.h, grid.w).nonzero().unbind(1)
        assert (int(columns.min()), int(rows.min())) == (int(BOX[0] * grid.w), int(BOX[1] * grid.h))
        assert (int(columns.max()), int(rows.max())) == (int(BOX[2] * grid.w), int(BOX[3] * grid.h))
