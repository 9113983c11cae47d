"""Compose: chaining, one budget, and what cannot be combined."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import foveate
from foveate import Keep, Selection, Stage, View
from foveate.core.method import Method
from foveate.core.view import ModelInfo
from foveate.errors import ConfigurationError
from foveate.maths.schedule import average
from foveate.methods import (
    DART,
    Compose,
    DivPrune,
    FasterVLM,
    FastV,
    GlimpsePrune,
    KNorm,
    PruMerge,
    PyramidDrop,
    Random,
    SparseVLM,
    ViTCoP,
    VScan,
)
from foveate.methods.compose import members
from tests.methods.views import LLAVA, chosen, make_view
from tests.tiny import Tiny

INFO = ModelInfo("llava", 6, 4, True)


def average_of(composed: Compose, info: ModelInfo, keep: float) -> float:
    return average([stage.layer for stage in composed.stages(info)], composed.shares(info, keep), info.layers)


@pytest.mark.parametrize("keep", [0.05, 1 / 9, 1 / 3, 0.9])
def test_an_overall_budget_is_met(keep: float) -> None:
    composed = Compose(FasterVLM(keep=1 / 3), FastV(keep=1 / 2), keep=keep)
    assert average_of(composed, LLAVA, keep) == pytest.approx(keep)
    first, second = members(composed, LLAVA, keep)
    # both are raised to the same power
    powers = [torch.tensor(b.budget.ratio).log() / torch.tensor(a).log() for a, b in ((1 / 3, first), (1 / 2, second))]
    assert float(powers[0]) == pytest.approx(float(powers[1]), rel=1e-4)


def test_a_number_is_met_for_every_image() -> None:
    composed = Compose(Random(keep=1 / 3), Random(keep=0.9, layer=4), keep=60)
    for grid in ((1, 10, 12), (1, 20, 30)):
        n = grid[1] * grid[2]
        memo: dict[str, object] = {}
        first = chosen(composed, make_view(grid, info=INFO, memo=memo)).index
        second = chosen(composed, make_view(grid, info=INFO, memo=memo, layer=4, index=first)).index
        assert (4 * len(first) + 2 * len(second)) / 6 == pytest.approx(60, abs=1)
        assert len(second) < len(first) < n


def test_a_member_s_budget_refers_to_what_reaches_it() -> None:
    composed = Compose(Random(keep=0.5), Random(keep=0.5, layer=3), keep=None)
    memo: dict[str, object] = {}
    first = chosen(composed, make_view((1, 10, 12), info=INFO, memo=memo)).index
    assert len(first) == 60
    # of these 60, 30 on average over the six layers would need none from layer 3 on
    with pytest.raises(ConfigurationError, match="cannot keep 0.5"):
        composed.select(make_view((1, 10, 12), info=INFO, memo=memo, layer=3, index=first))
    composed = Compose(Random(keep=0.5), Random(keep=0.6, layer=3))
    second = chosen(composed, make_view((1, 10, 12), info=INFO, memo=memo, layer=3, index=first)).index
    assert len(second) == 12  # (3 * 60 + 3 * 12) / 6 = 36 = 0.6 * 60
    assert int(second.max()) < 60


def test_members_have_memos_of_their_own() -> None:
    @dataclass(frozen=True)
    class Counts(Method):
        layer: int = 0

        def stages(self, info: ModelInfo) -> list[Stage]:
            return [Stage(self.layer), Stage(self.layer + 1)]

        def select(self, view: View) -> Selection:
            view.memo["calls"] = view.memo.get("calls", 0) + 1
            assert view.memo["calls"] <= 2
            assert view.entered == 4
            return Selection.everything(len(view))

    composed, memo = Compose(Counts(keep=0.5), Counts(keep=0.5, layer=2)), {}
    for layer in range(4):
        composed.select(make_view((1, 2, 2), info=INFO, memo=memo, layer=layer))


def test_a_real_prefill_keeps_the_product(tiny: Tiny) -> None:
    inputs = tiny.batch([[3, (4, 4), 5]])
    with foveate.prune(tiny.model, Compose(Random(keep=0.5), FastV(keep=0.6, layer=2), KNorm(keep=0.9, layer=4))) as t:
        tiny.model(**inputs)
    # 8 of 16; FastV keeps 0.4 of them from layer 2 on, KNorm 0.7 of those from layer 4 on
    assert t.last.alive_per_layer() == [8, 8, 3, 3, 2, 2]


def test_members_see_what_the_one_before_left_and_own_memos(tiny: Tiny) -> None:
    inputs = tiny.batch([[3, (4, 4), 5]])
    alone = FastV(keep=0.6, layer=2)
    with foveate.prune(tiny.model, Compose(Random(keep=0.5), alone)) as trace:
        tiny.model(**inputs)
    kept = trace.last.groups[0].steps
    assert set(kept[1].alive.tolist()) < set(kept[0].alive.tolist())


def test_with_a_glimpse_token(tiny: Tiny) -> None:
    inputs = tiny.batch([[3, (4, 6), 5]])
    glimpse = GlimpsePrune.example(0.5, tiny.model)
    composed = Compose(FasterVLM(keep=Keep(ratio=0.5, per="prompt")), glimpse)
    with foveate.prune(tiny.model, composed) as trace:
        tiny.model(**inputs)
    alive = trace.last.alive_per_layer()
    total = trace.last.visual_tokens
    assert alive[0] == total // 2
    assert alive[-1] <= alive[0]
    capped = Compose(FasterVLM(keep=Keep(ratio=0.5, per="prompt")), glimpse, keep=0.3)
    with foveate.prune(tiny.model, capped) as trace:
        tiny.model(**inputs)
    assert 0 < trace.keep_ratio <= 0.3 + 1e-6  # at most: how many a glimpse token keeps depends on the image


def test_keeping_everything_means_that_nothing_is_pruned() -> None:
    assert not Compose(FasterVLM(), FastV(), keep=1.0).prunes
    assert not Compose(FasterVLM(keep=1.0), FastV(keep=1.0)).prunes
    assert Compose(FasterVLM(keep=1.0), FastV()).prunes
    assert [stage.layer for stage in Compose(FasterVLM(keep=1.0), FastV()).stages(LLAVA)] == [2]
    assert Compose(FasterVLM(), FastV(), keep=1).prunes  # one token


@dataclass(frozen=True)
class Renumbers(Method):
    """Numbers the survivors afresh."""

    def stages(self, info: ModelInfo) -> list[Stage]:
        return [Stage(3, positions="contiguous")]

    def select(self, view: View) -> Selection:
        return Selection.everything(len(view))


@pytest.mark.parametrize(
    ("composed", "message"),
    [
        (lambda: Compose(FasterVLM(), DivPrune()), "both select before layer 0"),
        (lambda: Compose(FasterVLM(), SparseVLM()), "both select before layer 0"),
        (lambda: Compose(FastV(layer=2), KNorm(layer=2, keep=0.9)), "both select before layer 2"),
        (lambda: Compose(FastV(layer=2, keep=0.9), DivPrune()), "in the order in which they select"),
        (lambda: Compose(PyramidDrop(keep=0.6), DART(layer=2, keep=0.9)), "without overlap"),
        (lambda: Compose(FasterVLM(), Renumbers()), "renumbers positions"),
        (lambda: Compose(FasterVLM(), FastV(positions="contiguous")), "renumbers positions"),
        (lambda: Compose(Compose(FasterVLM(), FastV()), KNorm(layer=4)), "holds another Compose"),
        (lambda: Compose(FasterVLM(), FastV(), keep=Keep(threshold=0.5)), "threshold"),
        (lambda: Compose(FasterVLM(keep=Keep(ratio=0.5, per="prompt")), FastV()), "per image, per frame or per prompt"),
        (lambda: Compose(FasterVLM()), "two or more methods"),
        (lambda: Compose(FasterVLM(), "fastv"), "two or more methods"),
        (lambda: Compose(DivPrune(keep=64), FastV(), keep=0.1), "no budget that is a share"),
        (lambda: Compose(FasterVLM(keep=0.9), FastV(), keep=0.05), "cannot keep 0.05 .* Give an earlier method"),
        (lambda: Compose(DivPrune(keep=1.0), FastV(keep=1.0), keep=0.5), "No method has a keep below 1"),
        (lambda: Compose(PruMerge(), FastV(), keep=0.4), "no budget that is a share"),
        (lambda: Compose(ViTCoP(keep=0.5), KNorm(keep=0.99, layer=3), keep=0.4), "without overlap"),
        (lambda: Compose(VScan(keep=0.5), KNorm(keep=0.99, layer=2)), "without overlap"),
    ],
)  # fmt: skip
def test_what_cannot_be_combined_is_refused(composed: object, message: str) -> None:
    def configure() -> None:
        method: Method = composed()  # type: ignore[operator]
        method.stages(INFO)
        method.check(INFO)

    with pytest.raises(ConfigurationError, match=message):
        configure()
