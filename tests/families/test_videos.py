"""Videos of every model type that takes them: alone, several, and images between them, in left-padded batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foveate
from tests.families.reference import (
    check_dropping_is_masking,
    close,
    generate,
    logits_of_survivors,
    with_positions,
)
from tests.families.test_types import RECURRENT, TOLERANCE, model_of, with_videos
from tests.families.tiny import TinyType
from tests.reference import Drop

ALONE = [[6, ("video", 2, 3), 5]]
MIXED = [[6, ("video", 2, 3), 5], [2, ("video", 3, 2), 4, ("image", 2, 2), 3, ("video", 2, 2), 2]]


def mixed(entry: TinyType) -> list[Any]:
    """Several in a row, with an image between them where stock code can tell the two apart."""
    if not entry.on_image_token:
        return MIXED
    return [[(("video", *part[1:]) if isinstance(part, tuple) else part) for part in row] for row in MIXED]


@pytest.mark.parametrize("name", with_videos())
@pytest.mark.parametrize("layer", [0, 2])
def test_keeping_everything_is_the_stock_model(name: str, layer: int) -> None:
    model, entry = model_of(name)
    for rows in (ALONE, mixed(entry)):
        inputs = entry.batch(rows)
        _, stock, _ = generate(model, inputs, 3)
        with foveate.prune(model, Drop((layer,), 1.0)):
            assert torch.equal(generate(model, inputs, 3)[1], stock)


@pytest.mark.parametrize("name", with_videos(exact=True))
@pytest.mark.parametrize("layers", [(0,), (2,), (1, 3, 5)], ids=str)
def test_dropping_is_masking(name: str, layers: tuple[int, ...]) -> None:
    model, entry = model_of(name)
    for rows in (ALONE, mixed(entry)):
        check_dropping_is_masking(model, entry, entry.batch(rows), layers, 3, TOLERANCE)


@pytest.mark.parametrize("name", with_videos(exact=False))
def test_recurrent_layers_read_the_survivors_alone(name: str) -> None:
    model, entry = model_of(name)
    for rows in (ALONE, mixed(entry)):
        inputs = entry.batch(rows)
        with foveate.prune(model, Drop((0,), 0.4)) as trace, torch.no_grad():
            logits = model(**with_positions(model, inputs), use_cache=False).logits[:, -1]
        assert close(logits, logits_of_survivors(model, inputs, trace.to_dict())) < RECURRENT


@pytest.mark.parametrize("name", with_videos())
def test_a_video_is_one_grid_of_its_frames(name: str) -> None:
    """However many runs of tokens its frames are in."""
    model, entry = model_of(name)
    inputs = entry.batch(ALONE)
    with foveate.prune(model, Drop((0,), 0.5)) as trace:
        generate(model, inputs, 1)
    (group,) = trace.last.groups
    (grid,) = group.grids
    assert grid.t == entry.frames


@pytest.mark.parametrize("name", with_videos())
def test_a_direct_call_is_pruned_alike(name: str) -> None:
    """`model(**inputs)`, which encodes within the call, drops what `generate` drops."""
    model, entry = model_of(name)
    inputs = entry.batch(mixed(entry))
    with foveate.prune(model, Drop((0,), 0.4)) as trace:
        _, logits, _ = generate(model, inputs, 1)
    with foveate.prune(model, Drop((0,), 0.4)) as direct, torch.no_grad():
        found = model(**with_positions(model, inputs), use_cache=False).logits[:, -1]
    assert direct.to_dict()["rows"] == trace.to_dict()["rows"]
    assert [group.grids for group in direct.last.groups] == [group.grids for group in trace.last.groups]
    assert close(found, logits[:, 0]) < RECURRENT
