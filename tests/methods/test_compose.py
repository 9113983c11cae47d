"""Compose: chaining, one budget, and what cannot be combined."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import foveate
from foveate import Keep, Selection, Stage, View
from foveate.core.method import Method, ModelInfo
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
    PyramidDrop,
    Random,
    SparseVLM,
    ViTCoP,
    VScan,
)
from foveate.methods.compose import members
from tests.methods.views import LLAVA
from tests.tiny import Tiny

INFO = ModelInfo("llava", 6, 4, True)


@pytest.mark.parametrize("keep", [0.05, 1 / 9, 1 / 3, 0.9])
def test_an_overall_budget_is_met(keep: float) -> None:
    composed = Compose(FasterVLM(keep=1 / 3), FastV(keep=1 / 2), keep=keep)
    assert average(composed.schedule(LLAVA), 32) == pytest.approx(keep)
    first, second = members(composed, LLAVA)
    # both are raised to the same power
    powers = [
        torch.tensor(b).log() / torch.tensor(a).log() for a, b in ((1 / 3, first.keep.ratio), (1 / 2, second.keep))
    ]
    assert float(powers[0]) == pytest.approx(float(powers[1]), rel=1e-4)


def test_own_budgets_multiply() -> None:
    composed = Compose(DivPrune(keep=0.5), FastV(keep=17 / 32))
    assert dict(composed.schedule(LLAVA)) == pytest.approx({0: 0.5, 2: 0.25})


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


def test_keeping_everything_means_no_stage() -> None:
    assert list(Compose(FasterVLM(), FastV(), keep=1.0).stages(LLAVA)) == [Stage(0)]  # a Score keeps its stage
    assert list(Compose(DivPrune(), PyramidDrop(), keep=1.0).stages(LLAVA)) == []


@dataclass(frozen=True)
class Renumbers(Method):
    """Numbers the survivors afresh."""

    keep: float = 0.5

    def stages(self, info: ModelInfo) -> list[Stage]:
        return [Stage(3, positions="contiguous")]

    def select(self, stage: Stage, view: View) -> Selection:
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
        (lambda: Compose(FasterVLM(keep=Keep(ratio=0.5, per="prompt")), FastV()), "per image or all per prompt"),
        (lambda: Compose(FasterVLM()), "two or more methods"),
        (lambda: Compose(FasterVLM(), "fastv"), "two or more methods"),
        (lambda: Compose(DivPrune(keep=64), FastV(), keep=0.1), "no budget that is a share"),
        (lambda: Compose(FasterVLM(keep=0.9), FastV(), keep=0.05), "cannot keep 0.05 .* Give an earlier method"),
        (lambda: Compose(DivPrune(keep=1.0), FastV(keep=1.0), keep=0.5), "No method has a keep below 1"),
        (lambda: Compose(ViTCoP(keep=0.5), KNorm(keep=0.99, layer=5), keep=0.4), "does not say how many tokens"),
        (lambda: Compose(VScan(keep=0.5), KNorm(keep=0.99, layer=2)), "without overlap"),
    ],
)  # fmt: skip
def test_what_cannot_be_combined_is_refused(composed: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        composed().stages(INFO)  # type: ignore[operator]
