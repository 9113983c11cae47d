"""Methods in the vision tower: what they keep, against definitions spelled out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import foveate
from foveate.core.grid import Grid
from foveate.core.tower import TowerView
from foveate.core.view import ModelInfo
from foveate.errors import ConfigurationError
from foveate.evals.questions import load, prepare
from foveate.inference.answer import Asker
from foveate.maths.bipartite import merge_pairs
from foveate.maths.prediction import unpredicted
from foveate.methods import Compose, DivPrune, FastV, PixelPrune, ToMeTower, TowerFilter, ViTCoP
from foveate.methods.tower_filter import variance
from tests.reference import generate
from tests.tiny import make_tiny


def brute_force(frame: np.ndarray, tau: float) -> np.ndarray:
    """The rule word by word: `seen` is the picture as it can be put together again from the kept blocks."""
    h, w, _ = frame.shape
    seen, kept = np.zeros_like(frame), np.zeros((h, w), dtype=bool)

    def close(a: np.ndarray, b: np.ndarray) -> bool:
        return bool(np.abs(a - b).max() <= tau)

    for y in range(h):
        for x in range(w):
            if y == x == 0:
                guess = None
            elif y == 0:
                guess = seen[0, x - 1]
            elif x == 0:
                guess = seen[y - 1, 0]
            else:
                left, above, between = seen[y, x - 1], seen[y - 1, x], seen[y - 1, x - 1]
                guess = above if close(between, left) and not close(between, above) else left
            kept[y, x] = guess is None or not close(frame[y, x], guess)
            seen[y, x] = frame[y, x] if kept[y, x] else guess
    return kept


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 999))
def test_pixel_prune_is_its_definition(t: int, h: int, w: int, tau: float, seed: int) -> None:
    levels = np.random.default_rng(seed).integers(0, 3, (t, h, w, 2))  # few levels: many exact repeats
    picture = (levels * 0.5).astype(np.float32)
    found = unpredicted(torch.from_numpy(picture).flatten(0, 2), Grid(t, h, w), tau)
    assert np.array_equal(found.view(t, h, w).numpy(), np.stack([brute_force(frame, tau) for frame in picture]))


def test_a_blank_page_is_one_block_and_writing_is_kept() -> None:
    page = torch.ones(1, 6, 8, 5)
    page[0, 2, 3:5] = torch.rand(2, 5)
    kept = unpredicted(page.flatten(0, 2), Grid(1, 6, 8), 0.0).view(6, 8)
    assert kept[0, 0]
    assert kept[2, 3:5].all()
    assert int(kept.sum()) <= 6


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_pixel_prune_on_a_model_drops_what_repeats(family: str) -> None:
    tiny = make_tiny(family)
    inputs = tiny.batch([[3, (4, 4), 5]])
    if family == "llava":
        inputs["pixel_values"][:, :, 28:] = 1.0  # the lower half is blank
    else:
        inputs["pixel_values"][32:] = 1.0
    with foveate.prune(tiny.model, PixelPrune()) as trace:
        generate(tiny.model, inputs, 1)
    left = trace.last.groups[0].alive_at(0).tolist()
    assert left == [*range(9)]  # the first blank one has none like it before
    with foveate.prune(tiny.model, Compose(PixelPrune(), DivPrune(keep=0.25))) as trace:
        generate(tiny.model, inputs, 1)
    assert trace.keep_ratio == 0.25  # of the image, not of what the pixels left


def test_answers_about_pages_with_blank_margins_stay() -> None:
    """At tau 0 nothing but white is dropped: the shipped model is as often right as before."""
    torch.set_num_threads(1)
    asker, task = Asker.load("foveate/scenes-qwen2_5_vl", 8), load("scenes", 6)
    pages = [replace(row, images=(with_margins(row.images[0]),)) for row in task[:6]]
    rows, inputs = prepare(asker, pages, False, [])
    stock, pruned = asker.answer(inputs, None), asker.answer(inputs, PixelPrune())
    right = [[a.text.strip() in row.answers for a, row in zip(found, rows, strict=True)] for found in (stock, pruned)]
    assert abs(sum(right[0]) - sum(right[1])) <= 1
    assert sum(right[1]) >= 4
    assert 0.4 < pruned[0].prefill.keep_ratio < 0.75


def with_margins(picture: Image.Image) -> Image.Image:
    page = Image.new("RGB", (picture.width + 112, picture.height + 112), "white")
    page.paste(picture, (56, 56))
    return page


def test_variance_is_that_of_every_plane_over_all_patches() -> None:
    pixels = torch.randn(5, 4, 6, 49)
    wanted = pixels.transpose(1, 2).flatten(2).var(-1, correction=0).mean(-1)
    assert torch.allclose(variance(pixels), wanted, atol=1e-5)


def test_the_filter_keeps_the_most_varied_and_its_count() -> None:
    view = TowerView(
        ModelInfo("tensors"), 0, torch.arange(6), Grid(1, 2, 3), torch.randn(6, 4, 8), torch.ones(6),
        given_pixels=torch.randn(6, 4, 3, 9) * torch.tensor([3.0, 1, 5, 2, 0, 4]).view(6, 1, 1, 1),
    )  # fmt: skip
    assert TowerFilter(keep=0.5).select_in_tower(view).tolist() == [0, 2, 5]  # type: ignore[union-attr]
    assert TowerFilter(keep=2).select_in_tower(view).tolist() == [2, 5]  # type: ignore[union-attr]
    assert len(TowerFilter(keep=0.5, by="max_min", block=1).select_in_tower(view)) == 3


def test_a_merged_pair_is_the_mean_weighted_by_sizes() -> None:
    metric = torch.tensor([[1.0, 0], [0, 1], [0, 1], [1, 0.1]])
    found = merge_pairs(metric, 1, torch.tensor([1.0, 1, 3, 1]))
    x = torch.tensor([[0.0], [4], [8], [100]])
    assert found.index.tolist() == [0, 1, 3]
    assert found.apply(x).flatten().tolist() == [0, 7, 100]


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["llava", "qwen2_5_vl"]), st.floats(0.26, 0.99), st.sampled_from([1, 2, None]))
def test_tome_leaves_its_share(family: str, keep: float, blocks: int | None) -> None:
    tiny = make_tiny(family)
    method = ToMeTower(keep=max(keep, 0.5) if blocks == 1 else keep, blocks=blocks)
    with torch.no_grad(), foveate.prune(tiny.model, method) as trace:
        tiny.model(**tiny.batch([[3, (4, 4), 5]]))
    assert trace.last.alive_per_layer()[0] == method.budget.size(16)
    sizes = {}
    for merge in trace.to_dict()["rows"][0]["merges"]:
        sizes[merge["layer"]] = sizes.get(merge["layer"], 0) + len(merge["sources"])
    assert set(sizes) == ({-1} if method.budget.size(16) < 16 else set())


def test_what_does_not_fit_is_refused() -> None:
    for wrong in (
        lambda: PixelPrune(tau=-1),
        lambda: TowerFilter(by="colour"),  # type: ignore[arg-type]
        lambda: ToMeTower(blocks=0),
        lambda: Compose(FastV(), TowerFilter()),
        lambda: Compose(PixelPrune(), TowerFilter(), keep=0.3),
    ):
        with pytest.raises(ConfigurationError):
            wrong()
    with pytest.raises(ConfigurationError, match="halves"):
        ToMeTower(keep=0.1, blocks=2).check(ModelInfo("llava", 6, 4, True, 2, feeding=3))


def test_vitcop_keeps_no_more_than_the_tower_leaves() -> None:
    info = ModelInfo("qwen2_5_vl", 28, 32)
    alone, behind = ViTCoP(keep=1 / 9), ViTCoP(keep=1 / 9, tower=TowerFilter(keep=0.2))
    assert alone.counts(info, 900)[0] == 270
    assert behind.counts(info, 900)[0] == 180
    assert behind.counts(info, 900)[1] > alone.counts(info, 900)[1]
    assert "tower_filter(keep=0.2," in str(behind)
    assert "tower" not in str(alone)
