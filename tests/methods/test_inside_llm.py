"""What each method inside the language model keeps, and how its budget is spread over the layers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import foveate
from foveate import Keep, Tap
from foveate.core.method import Method
from foveate.core.view import ModelInfo
from foveate.errors import BudgetError, ConfigurationError
from foveate.maths.schedule import average
from foveate.methods import DART, DivPrune, FastV, KNorm, PyramidDrop, SparseVLM, ViTCoP, VScan
from foveate.methods.dart import least_similar, set_order
from foveate.methods.sparsevlm import adaptive_count, raters
from tests.methods.views import LLAVA, QWEN, chosen, kept, make_view, number
from tests.tiny import Tiny

INSIDE = (DART, FastV, KNorm, PyramidDrop, SparseVLM, VScan)


def rows(last: list[float]) -> Tensor:
    """`[2, n]` attention of two text tokens of which the last one matters."""
    return torch.tensor([[0.0] * len(last), last])


def stage_layers(method: Method, info: ModelInfo = LLAVA) -> list[int]:
    return [stage.layer for stage in method.stages(info)]


# -- budgets -----------------------------------------------------------------------------------------------


def test_defaults_are_the_published_schedules() -> None:
    def shares(method: Method, info: ModelInfo = LLAVA) -> dict[int, float]:
        keep = method.budget.ratio_of(576)
        return dict(zip(stage_layers(method, info), method.shares(info, keep), strict=True))

    assert shares(FastV()) == pytest.approx({2: 0.5})
    assert shares(PyramidDrop()) == pytest.approx({8: 0.5, 16: 0.25, 24: 0.125})
    assert shares(VScan()) == pytest.approx({0: 96 / 576, 16: 32 / 576})
    assert shares(VScan(), QWEN) == pytest.approx({0: 1 / 6, 14: 1 / 18})
    for keep, published in ((1 / 3, (300, 200, 110)), (2 / 9, (303, 110, 36)), (1 / 9, (66, 30, 17))):
        found = shares(SparseVLM(keep=keep))
        assert list(found) == [0, 2, 6, 15]
        # the published numbers do not count recycled tokens and average 188, 124 and 62 of 576
        assert [share * 576 for share in list(found.values())[1:]] == pytest.approx(published, rel=0.11)


@pytest.mark.parametrize("kind", INSIDE)
@pytest.mark.parametrize("info", [LLAVA, QWEN, ModelInfo("llava", 12, 8, True)])
@pytest.mark.parametrize("keep", [0.3, 0.5, 0.9])
def test_every_schedule_meets_its_average(kind: type[Method], info: ModelInfo, keep: float) -> None:
    method = kind(keep=keep)
    shares = method.shares(info, keep)
    assert average(stage_layers(method, info), shares, info.layers) == pytest.approx(keep)
    assert list(shares) == sorted(shares, reverse=True)


@pytest.mark.parametrize("kind", INSIDE)
@pytest.mark.parametrize("total", [100, 576, 1000])
def test_a_number_is_the_average_too(kind: type[Method], total: int) -> None:
    """`keep=192` of an image of 576 tokens is `keep=1/3`, of one of 1,152 it is 1/6."""
    wanted = total * 3 // 4
    for n in (total, 2 * total):
        assert number(kind(keep=wanted), n) == number(kind(keep=wanted / n), n)


@pytest.mark.parametrize("kind", INSIDE)
def test_a_real_prefill_meets_the_average(kind: type[Method], tiny: Tiny) -> None:
    grid = (16, 16) if tiny.family == "qwen2_5_vl" else (4, 4)
    inputs = tiny.batch([[3, grid, 6]])
    with foveate.prune(tiny.model, kind(keep=0.4)) as trace, torch.no_grad():
        tiny.model(**inputs)
    # every stage rounds down to whole tokens
    n = grid[0] * grid[1]
    assert 0.4 - 1 / n <= trace.keep_ratio <= 0.4 + 1e-9


@pytest.mark.parametrize("kind", INSIDE)
def test_what_a_method_cannot_do_is_refused(kind: type[Method]) -> None:
    with pytest.raises(BudgetError):
        kind(keep=0.0)
    with pytest.raises(BudgetError, match="without a point"):
        kind(keep=2.0)
    if kind is not VScan:
        for keep in (0.01, 5):
            with pytest.raises(ConfigurationError, match=r"cannot keep 0\.0\d+ .* Compose"):
                kind(keep=keep).counts(LLAVA, 576)


@pytest.mark.parametrize("kind", [DART, SparseVLM, VScan, DivPrune, ViTCoP])
def test_a_threshold_needs_scores(kind: type[Method]) -> None:
    with pytest.raises(ConfigurationError, match="threshold"):
        kind(keep=Keep(threshold=0.5))


def test_contradictory_parameters_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="no keys"):
        KNorm(layer=0)
    with pytest.raises(ConfigurationError, match="increasing"):
        PyramidDrop(layers=(8, 4))
    with pytest.raises(ConfigurationError, match="windows"):
        VScan(windows=0)
    with pytest.raises(ConfigurationError, match="more than 40"):
        VScan(layer=40).stages(LLAVA)
    with pytest.raises(ConfigurationError, match=r"layers 0\.\.31"):
        FastV(layer=32).counts(LLAVA, 576)
    with pytest.raises(ConfigurationError, match=r"layers 0\.\.31"):
        PyramidDrop(layers=(8, 32)).stages(LLAVA)
    with pytest.raises(ConfigurationError, match="no attention"):
        FastV(layer=0)
    with pytest.raises(ConfigurationError, match="visual_pivots"):
        DART(visual_pivots=0)
    with pytest.raises(ConfigurationError, match="rank_scale"):
        SparseVLM(rank_scale=2.0)
    with pytest.raises(ConfigurationError, match="cluster_size"):
        SparseVLM(cluster_size=0)


# -- choices -----------------------------------------------------------------------------------------------


def test_fastv_keeps_what_the_last_token_attends_to() -> None:
    view = make_view((1, 1, 4), layer=2, attention=rows([0.1, 0.4, 0.2, 0.3]))
    assert kept(FastV(), view) == [1, 3]


def test_pyramiddrop_halves_what_entered_not_what_is_left() -> None:
    attention = rows([0.1, 0.8, 0.2, 0.7, 0.3, 0.6, 0.4, 0.5])
    assert kept(PyramidDrop(), make_view((1, 2, 4), layer=8, attention=attention)) == [1, 3, 5, 7]
    alive = torch.tensor([1, 3, 5, 7])
    survivors = make_view((1, 2, 4), layer=16, attention=rows([0.8, 0.7, 0.6, 0.5]), index=alive)
    assert kept(PyramidDrop(), survivors) == [0, 1]


def test_knorm_keeps_the_smallest_head_mean_keys() -> None:
    # Two heads. Token 0: keys 3 and -3 cancel out, so its mean is smallest although each is large.
    keys = torch.tensor([[[3.0], [1.0], [2.0], [0.5], [9.0], [9.0]], [[-3.0], [1.0], [2.0], [0.7], [9.0], [9.0]]])
    assert kept(KNorm(keep=17 / 32), make_view((1, 2, 2), layer=2, keys=keys)) == [0, 3]


def test_dart_by_hand() -> None:
    # Visual pivots by L1 norm of the keys: 1. Text pivot: the second text token. Three are to be kept: 1, then the
    # least similar to 1 (180 degrees: 3), then the least similar to the text pivot (90 degrees) of those left: 2.
    def vectors(*degrees: float) -> Tensor:
        return torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in degrees])

    keys, text_keys = torch.tensor([[[1.0], [-5.0], [2.0], [3.0]]]), torch.tensor([[[4.0], [9.0]]])
    hidden, text = vectors(20, 0, -60, 180), vectors(0, 90)
    view = make_view((1, 2, 2), layer=2, keys=keys, text_keys=text_keys, hidden=hidden, text=text)
    method = DART(keep=(2 + 30 * 0.75) / 32, visual_pivots=1, text_pivots=1)
    assert kept(method, view) == [1, 2, 3]


def test_dart_takes_pivots_in_the_order_of_a_set() -> None:
    assert set_order([2, 0, 1], 5) == [1, 2, 0]  # places 7, 5, 6: small whole numbers stand in a set by size


def test_dart_divides_the_budget_among_its_pivots() -> None:
    x = torch.nn.functional.normalize(torch.randn(20, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    found = least_similar(x, x[:3], torch.tensor([4, 9]), 10).tolist()
    assert len(set(found)) == 10
    assert found[:2] == [4, 9]
    expected, taken = [4, 9], {4, 9}
    for pivot, share in zip(range(3), (3, 3, 2), strict=True):
        order = [i for i in (x @ x[pivot]).argsort().tolist() if i not in taken][:share]
        expected += order
        taken |= set(order)
    assert found == expected


def test_dart_also_prunes_before_the_language_model() -> None:
    hidden = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    view = make_view((1, 3, 4), hidden=hidden, text=hidden[:2])
    assert len(kept(DART(keep=0.5, layer=0), view)) == 6


def test_sparsevlm_raters_match_better_than_average() -> None:
    visual = torch.tensor([[4.0, 0.0], [3.0, 0.0]])
    text = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [1.1, 5.0]])
    match = torch.softmax(visual @ text.T, 1).mean(0)
    assert (match > match.mean()).tolist() == [True, False, False, True]
    assert raters(visual, text).tolist() == [0, 3]
    assert raters(visual, torch.zeros(3, 2)).tolist() == [0, 1, 2]


def test_sparsevlm_rank() -> None:
    random = np.random.default_rng(0)
    for rank in (1, 3, 6):
        rows = random.random((8, rank)) @ random.random((rank, 40))
        assert np.linalg.matrix_rank(rows) == rank
        deleted = int(0.8 * (40 - rank))
        assert adaptive_count(torch.tensor(rows), 0.8) == 40 - deleted


def test_sparsevlm_keeps_the_best_rated_and_recycles() -> None:
    # 40 tokens, raters are the first two of three text tokens. 10 are to stay: 9 by rating (0..8) would recycle a pool
    # of int(0.3 * 31) + 1 = 10 of the others to 10 // 10 + 1 = 2 clusters, one too many; so 8 by rating, and a pool of
    # int(0.3 * 32) + 1 = 10 (8..17) in 2 clusters.
    n = 40
    rating = torch.linspace(1, 0, n)
    attention = torch.cat([rating[None] * 0.9, rating[None] * 0.1, 1 - rating[None]])  # the last one is no rater
    hidden = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    view = make_view((1, 5, 8), layer=2, attention=attention, hidden=hidden, memo={"raters": torch.tensor([0, 1])})
    found = SparseVLM().choose(view, 10)
    assert isinstance(found, foveate.Selection)
    assert found.merge is not None
    assert len(found) == 10
    assert found.index[:8].tolist() == list(range(8))
    assert found.merge.target.tolist() == [8, 9]
    assert sorted(found.merge.source.tolist()) == list(range(8, 18))
    out = found.apply(hidden)
    torch.testing.assert_close(out[:8], hidden[:8])
    sizes = torch.bincount(found.merge.segment)
    torch.testing.assert_close((out[8:] * sizes[:, None]).sum(0), hidden[8:18].sum(0))  # means of its pool


def test_sparsevlm_keeps_one_token_if_it_must() -> None:
    view = make_view((1, 5, 8), layer=2, attention=rows([1.0] * 40), memo={"raters": torch.tensor([1])})
    for count in range(1, 40):
        assert len(SparseVLM().choose(view, count)) == count  # type: ignore[arg-type]
        assert len(SparseVLM(recycled=1.0, cluster_size=1).choose(view, count)) == count  # type: ignore[arg-type]
        assert len(SparseVLM(recycled=0.0).choose(view, count)) == count  # type: ignore[arg-type]


def test_sparsevlm_adaptive_rule_runs_on_a_model(tiny: Tiny) -> None:
    inputs = tiny.batch([[3, (4, 4), 5]])
    with foveate.prune(tiny.model, SparseVLM(rank_scale=0.5)) as trace, torch.no_grad():
        tiny.model(**inputs)
    alive = trace.last.alive_per_layer()
    assert alive[0] == 16
    assert 1 <= alive[-1] < 16


def test_vscan_scans_every_window_and_then_globally() -> None:
    # 4 x 4 tokens, 2 x 2 windows. Eight are kept: half of them the best of each window in the shallow block (0, 3, 8
    # and 15), then, of the others, those most attended in the deep block.
    method = VScan(keep=1 / 3, windows=2)
    shallow, deep = method.taps(LLAVA)
    assert (shallow.block, deep.block) == (5, None)
    local, overall = torch.zeros(16), torch.zeros(16)
    overall[[0, 1, 2, 5, 6]] = torch.tensor([9.0, 8, 7, 6, 5])  # 0 is chosen already
    local[[0, 1, 3, 8, 15]] = torch.tensor([9.0, 8.0, 0.2, 5.0, 6.0])
    hidden = torch.eye(16)
    hidden[4], hidden[7] = hidden[0] * 2, hidden[15] * 3  # 4 is most similar to 0, 7 to 15
    taps = {Tap("received", 5): local, Tap("received"): overall}
    found = chosen(method, make_view((1, 4, 4), taps=taps, hidden=hidden))
    assert found.index.tolist() == [0, 1, 2, 3, 5, 6, 8, 15]
    assert found.merge is not None
    owners = dict(zip(found.merge.source.tolist(), found.merge.entry_target.tolist(), strict=True))
    assert (owners[4], owners[7]) == (0, 7)
    out = found.apply(torch.ones(16, 1))
    assert out.squeeze(1).tolist() == pytest.approx([1.0] * 8)  # means
    # half of six is less than one for each window, so all are the most attended ones (3 is the first of equals)
    few = method.choose(make_view((1, 4, 4), taps=taps, hidden=hidden), 6)
    assert few.index.tolist() == [0, 1, 2, 3, 5, 6]  # type: ignore[union-attr]
    # the second stage: a third of the eight, by the last token's attention
    attention = rows([0.1, 0.2, 0.4, 0.3, 0, 0, 0, 0])
    assert kept(method, make_view((1, 4, 4), layer=16, attention=attention, index=found.index)) == [2, 3]
    assert Tap("received") in VScan().taps(QWEN)
