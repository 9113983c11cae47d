"""EVS, VidCom2 and FastVID against published masks and against their rules, written out."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foveate.core.selection import Selection
from foveate.core.view import ModelInfo, Tap, View
from foveate.errors import ConfigurationError
from foveate.methods import EVS, FastVID, VidCom2
from foveate.methods.evs import before
from foveate.methods.fastvid import density

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "video" / "vidcom2.json").read_text())
INFO = ModelInfo("qwen2_5_vl", 4, 4, False)


def video(frames: int, height: int, width: int, depth: int = 16, seed: int = 0) -> View:
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(frames * height * width, depth, generator=random)
    received = torch.rand(len(hidden), generator=random)
    return View.of(hidden, grid=(frames, height, width), taps={Tap("received"): received}, info=INFO)


def kept(choice: Any) -> list[int]:
    return (choice.index if isinstance(choice, Selection) else choice).tolist()


# -- EVS -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 0.7, 0.75, 0.9, 0.99])
@pytest.mark.parametrize("shape", [(4, 3, 5), (7, 4, 4), (2, 6, 2), (1, 3, 3)])
def test_evs_is_the_mask_of_transformers(shape: tuple[int, int, int], rate: float) -> None:
    module = pytest.importorskip("transformers.models.nemotron_h_omni.modeling_nemotron_h_omni")
    view = video(*shape)
    if "num_tubelets" in inspect.signature(module.compute_retention_mask).parameters:  # transformers 5.24
        size: dict[str, Any] = {"num_tubelets": shape[0]}
    else:
        size = {"thw": torch.tensor(shape), "spatial_merge_size": 1}
    mask = module.compute_retention_mask(video_embeds=view.hidden, q=rate, **size)
    method = EVS(keep=1 - rate, published=True)
    assert kept(method.select(view)) == mask.nonzero().squeeze(1).tolist()
    if 1 - rate >= 1 / shape[0]:  # the default is the same wherever a frame fits into the budget
        assert kept(EVS(keep=1 - rate).select(view)) == mask.nonzero().squeeze(1).tolist()


def test_evs_thins_the_first_frame_where_not_even_that_fits() -> None:
    found = kept(EVS(keep=5).select(video(4, 3, 5)))
    assert found == [0, 3, 6, 9, 12]


def test_what_stands_before_each_token() -> None:
    view = video(3, 2, 2)
    assert before(view).tolist() == [-1] * 4 + list(range(8))
    alive = View.of(view.hidden[[0, 2, 5, 8, 10]], grid=(3, 2, 2), index=torch.tensor([0, 2, 5, 8, 10]), info=INFO)
    assert before(alive).tolist() == [-1, -1, -1, -1, -1]
    some = View.of(view.hidden[[1, 5, 9]], grid=(3, 2, 2), index=torch.tensor([1, 5, 9]), info=INFO)
    assert before(some).tolist() == [-1, 0, 1]


# -- VidCom2 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: str(case["seed"]))
def test_vidcom2_keeps_what_the_published_code_keeps(case: dict[str, Any]) -> None:
    side, frames = int(GOLDEN["tokens_per_frame"] ** 0.5), case["frames"]
    x = np.random.default_rng(case["seed"]).standard_normal((frames * side**2, case["width"])).astype(np.float32)
    hidden = torch.from_numpy(x) + torch.arange(frames).repeat_interleave(side**2)[:, None] * 0.3
    view = View.of(hidden, grid=(frames, side, side), info=INFO)
    assert kept(VidCom2(keep=case["keep"], published=True).select(view)) == case["kept"]
    exact = kept(VidCom2(keep=case["keep"]).select(view))
    assert len(exact) == int(case["keep"] * len(view))
    each = np.bincount(np.array(exact) // side**2, minlength=frames)
    assert np.abs(each - np.array(case["per_frame"])).max() <= 1


# -- FastVID -------------------------------------------------------------------------------------------------


def by_hand(x: Tensor) -> list[float]:
    """Density peaks, token by token."""
    n, scale = len(x), x.shape[1] ** 0.5
    distance = [[float((x[i] - x[j]).norm()) / scale for j in range(n)] for i in range(n)]
    dense = [float(np.exp(-np.mean([d**2 for d in sorted(distance[i])[:4]]))) for i in range(n)]
    far = max(map(max, distance))
    return [min([distance[i][j] for j in range(n) if dense[j] > dense[i]] or [far]) * dense[i] for i in range(n)]


def test_density_is_the_rule_written_out() -> None:
    x = torch.randn(11, 5, generator=torch.Generator().manual_seed(0))
    assert density(x).tolist() == pytest.approx(by_hand(x), abs=1e-4)


def test_fastvid_step_by_step() -> None:
    """Two scenes of three frames: one cut, the last frame of each scene takes the dense tokens."""
    random = torch.Generator().manual_seed(1)
    scene = torch.randn(2, 1, 1, 12, generator=random).expand(2, 3, 8, 12) * 3
    hidden = (scene + torch.randn(2, 3, 8, 12, generator=random) * 0.3).reshape(48, 12)
    received = torch.rand(48, generator=random)
    view = View.of(hidden, grid=(6, 2, 4), taps={Tap("received"): received}, info=INFO)
    found = FastVID(keep=24, segments=1, dense=0.5).select(view)
    assert isinstance(found, Selection)
    salient = [f * 8 + int(i) for f in range(6) for i in received[f * 8 : f * 8 + 8].topk(2).indices]
    wanted = set(salient)
    for last in (2, 5):
        rest = [i for i in range(last * 8, last * 8 + 8) if i not in salient]
        score = by_hand(hidden[rest])
        order = sorted(range(len(rest)), key=lambda i: -score[i])
        wanted |= {rest[i] for i in order[:6]}
    assert set(kept(found)) == wanted
    assert found.merge is not None
    values = found.apply(hidden)
    target = int(found.merge.target[0])
    members = found.merge.source[found.merge.segment == 0]
    anchor, own = int(members[0]), members[1:]
    share = max(1 / (len(own) + 1), 0.6)
    assert found.index[target] == anchor
    assert torch.allclose(values[target], share * hidden[anchor] + (1 - share) * hidden[own].mean(0), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([EVS, VidCom2, FastVID]), st.integers(1, 7), st.integers(1, 5), st.data())
def test_any_video_keeps_what_was_asked_for(kind: Any, frames: int, height: int, data: st.DataObject) -> None:
    view = video(frames, height, 3)
    count = data.draw(st.integers(1, len(view)))
    found = kept(kind(keep=count).select(view))
    assert found == sorted(set(found))
    assert len(found) == count
    assert 0 <= found[0] <= found[-1] < len(view)


@pytest.mark.parametrize(
    ("kind", "bad"), [(VidCom2, {"temperature": 0}), (FastVID, {"step": 0}), (FastVID, {"own": 2})]
)
def test_parameters_that_make_no_sense(kind: Any, bad: dict) -> None:
    with pytest.raises(ConfigurationError):
        kind(**bad)
