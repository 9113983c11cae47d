"""A budget per frame: every frame is chosen as an image of its own would be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foveate.core.budget import Keep
from foveate.core.frames import frame_sizes
from foveate.core.grid import Grid
from foveate.core.selection import Selection, resolve
from foveate.core.view import Tap, View
from foveate.errors import BudgetError, ConfigurationError
from foveate.methods import DART, EVS, Compose, DivPrune, FastVID, Random, ToMe, VidCom2
from foveate.methods.tome_tower import ToMeTower
from foveate.methods.tower_filter import TowerFilter

KINDS: dict[str, Any] = {"divprune": DivPrune, "tome": ToMe}


def features(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))


def view_of(hidden: Tensor, shape: tuple[int, int, int]) -> View:
    return View.of(hidden, grid=shape, taps={Tap("keys"): hidden.flip(1)})


def chosen(method: Any, view: View) -> Selection:
    return resolve([method.select_all(view)], [len(view)], method.name)[0]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.tuples(*[st.integers(1, 5)] * 3), st.integers(0, 99), st.data())
def test_every_frame_is_an_image_of_its_own(name: str, shape: tuple[int, int, int], seed: int, data: Any) -> None:
    frames, height, width = shape
    size = height * width
    share = data.draw(st.floats(0.05, 1) | st.integers(1, size))
    budget = Keep.of(share)
    hidden = features(frames * size, seed)
    found = chosen(KINDS[name](keep=replace(budget, per="frame")), view_of(hidden, shape))
    each = [
        chosen(KINDS[name](keep=budget), view_of(hidden[f * size : (f + 1) * size], (1, height, width)))
        for f in range(frames)
    ]
    assert found.index.tolist() == [f * size + i for f, own in enumerate(each) for i in own.index.tolist()]
    assert len(found) == frames * len(each[0])
    wanted = torch.cat([own.apply(hidden[f * size : (f + 1) * size]) for f, own in enumerate(each)])
    assert torch.allclose(found.apply(hidden), wanted, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.sets(st.integers(0, 23), min_size=1), st.integers(1, 8))
def test_frames_of_which_some_is_gone_keep_what_they_can(frames: int, size: int, left: set[int], count: int) -> None:
    alive = torch.tensor(sorted({i % (frames * size) for i in left}))
    view = View.of(features(len(alive)), grid=(frames, 1, size), index=alive)
    found = chosen(Random(keep=Keep(count=count, per="frame")), view)
    had = torch.bincount(alive // size, minlength=frames)
    assert torch.bincount(alive[found.index] // size, minlength=frames).tolist() == had.clamp(max=count).tolist()


def test_frames_do_not_lose_the_same_places() -> None:
    found = chosen(Random(keep=Keep(ratio=0.5, per="frame")), View.of(features(64), grid=(2, 4, 8)))
    first, second = (found.index[found.index // 32 == f] % 32 for f in range(2))
    assert first.tolist() != second.tolist()


def test_members_of_a_composition_share_out_each_frame() -> None:
    method = Compose(DivPrune(keep=Keep(ratio=0.5, per="frame")), DART(keep=Keep(ratio=0.5, per="frame"), layer=2))
    assert method.per == "frame"
    memo: dict[Any, Any] = {}
    first = chosen(method, View.of(features(48), grid=(3, 4, 4), memo=memo))
    assert torch.bincount(first.index // 16).tolist() == [8] * 3
    with pytest.raises(ConfigurationError, match="per image, per frame or per prompt"):
        Compose(DivPrune(keep=Keep(ratio=0.5, per="frame")), DART(layer=2))


@pytest.mark.parametrize("kind", [EVS, VidCom2, FastVID, ToMeTower, TowerFilter])
def test_methods_that_do_not_choose_frame_by_frame_refuse(kind: Any) -> None:
    with pytest.raises(ConfigurationError, match="frame by frame"):
        kind(keep=Keep(ratio=0.5, per="frame"))
    with pytest.raises(BudgetError, match="per"):
        Keep(ratio=0.5, per="second")  # type: ignore[arg-type]


def test_tiles_of_one_picture_are_one_frame() -> None:
    assert frame_sizes([Grid(1, 2, 3), Grid(1, 4, 4)]) == [22]
    assert frame_sizes([Grid(3, 2, 3)]) == [6, 6, 6]
