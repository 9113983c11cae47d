"""Keep and Selection: properties that hold whatever the numbers."""

from __future__ import annotations

import json
from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foveate.core.budget import Keep, top
from foveate.core.selection import Merge, Selection, pack
from foveate.errors import BudgetError
from foveate.methods.downsample import coarse_grid, pool


@pytest.mark.parametrize(
    "bad",
    [
        {}, {"ratio": 0.0}, {"ratio": 1.1}, {"ratio": -0.1}, {"ratio": float("nan")}, {"count": 0}, {"count": 2.5},
        {"count": True}, {"ratio": 0.5, "count": 3}, {"threshold": float("inf")}, {"ratio": 0.5, "floor": -1},
        {"ratio": 0.5, "cap": 0}, {"ratio": 0.5, "cap": 1.5}, {"ratio": 0.5, "floor": 9, "cap": 3},
        {"ratio": 0.5, "per": "batch"},
    ],
)  # fmt: skip
def test_invalid_budgets_raise_at_construction(bad: dict) -> None:
    with pytest.raises(BudgetError):
        Keep(**bad)


@pytest.mark.parametrize("bad", ["0.1", None, True, 0.0, 1.5, -3])
def test_invalid_user_values(bad: object) -> None:
    with pytest.raises(BudgetError):
        Keep.of(bad)  # type: ignore[arg-type]


def test_user_values() -> None:
    assert Keep.of(0.5) == Keep(ratio=0.5)
    assert Keep.of(64) == Keep(count=64)
    assert Keep.of(1.0) == Keep(ratio=1.0)
    assert Keep.of(1) == Keep(count=1)
    assert Keep.of(Keep(threshold=0.5)) == Keep(threshold=0.5)
    assert Keep(ratio=1 / 9).size(576) == 64
    with pytest.raises(BudgetError):
        Keep(threshold=0.1).size(5)


def test_a_ratio_that_is_k_of_n_keeps_k() -> None:
    for n in range(1, 1023):
        assert [Keep(ratio=k / n).size(n) for k in range(1, n + 1)] == list(range(1, n + 1)), n
    assert Keep(ratio=0.29).size(100) == 29
    assert Keep(threshold=0.0, cap=0.29).choose(torch.rand(100) + 1).sum() == 29


@given(ratio=st.fractions(min_value="1/1000", max_value=1, max_denominator=10**6), n=st.integers(1, 5000))
@settings(max_examples=300, deadline=None)
def test_other_ratios_are_rounded_down(ratio: Fraction, n: int) -> None:
    """Exactly as rational numbers are, although `float(ratio) * n` is not exact."""
    assert Keep(ratio=float(ratio)).size(n) == max(1, floor(ratio * n))


def test_a_whole_number_is_never_a_ratio() -> None:
    score = torch.rand(50) + 1
    assert Keep.of(1).size(50) == 1
    assert Keep.of(1.0).size(50) == 50
    assert not Keep.of(1).is_everything
    assert Keep.of(1.0).is_everything
    for cap, kept in ((1, 1), (1.0, 50)):
        budget = Keep(threshold=0.0, cap=cap)
        assert int(budget.choose(score).sum()) == kept
        assert budget.caps_nothing == (kept == 50)
    assert Keep(threshold=0.0, cap=1) != Keep(threshold=0.0, cap=1.0)
    assert len({Keep(threshold=0.0, cap=1), Keep(threshold=0.0, cap=1.0), Keep(threshold=0, cap=1.0)}) == 2
    assert Keep(ratio=1) == Keep(ratio=1.0)
    assert not Keep(ratio=1.0, cap=1).is_everything
    assert Keep.of(np.int64(64)) == Keep(count=64)
    assert Keep.of(np.float64(0.25)) == Keep(ratio=0.25)
    with pytest.raises(BudgetError, match="without a point"):
        Keep.of(64.0)


@pytest.mark.parametrize("value", [1, 1.0, 64, 0.11, 1 / 9])
def test_budgets_survive_json(value: float) -> None:
    plain = Keep.of(value).plain
    again = json.loads(json.dumps(plain))
    assert type(again) is type(value)
    assert Keep.of(again) == Keep.of(value)


keeps = st.one_of(
    st.builds(lambda r, f: Keep(ratio=r, floor=f), st.floats(0.01, 1), st.integers(0, 4)),
    st.builds(lambda c: Keep(count=c), st.integers(1, 80)),
    st.builds(
        lambda t, f, c: Keep(threshold=t, floor=f, cap=c), st.floats(-2, 2), st.integers(0, 3), st.integers(3, 40)
    ),
    st.builds(lambda t, c: Keep(threshold=t, cap=c), st.floats(-2, 2), st.floats(0.1, 1)),
)


@given(keep=keeps, n=st.integers(1, 60), seed=st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_a_budget_keeps_the_best(keep: Keep, n: int, seed: int) -> None:
    score = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    chosen = keep.choose(score)
    index = chosen.nonzero().squeeze(1) if chosen.dtype == torch.bool else chosen
    assert index.tolist() == sorted(set(index.tolist()))
    assert min(keep.floor, n) <= len(index) <= n
    if isinstance(keep.cap, int):
        assert len(index) <= max(keep.cap, keep.floor)
    if keep.threshold is None:
        assert len(index) == keep.size(n)
    rest = torch.ones(n, dtype=torch.bool)
    rest[index] = False
    if len(index) and rest.any():
        assert score[index].min() >= score[rest].max()


def test_ties_go_to_the_first() -> None:
    assert top(torch.tensor([1.0, 2.0, 2.0, 2.0]), 2).tolist() == [1, 2]


@st.composite
def selections(draw: st.DrawFn, n: int | None = None) -> Selection:
    n = n or draw(st.integers(1, 12))
    index = torch.tensor(sorted(draw(st.sets(st.integers(0, n - 1), min_size=1))))
    if not draw(st.booleans()):
        return Selection(n, index)
    targets = draw(st.lists(st.integers(0, len(index) - 1), min_size=1, unique=True))
    entries = [(t, s) for t in range(len(targets)) for s in draw(st.sets(st.integers(0, n - 1), min_size=1))]
    segment, source = (torch.tensor(x) for x in zip(*draw(st.permutations(entries)), strict=True))
    weights = torch.rand(len(entries), generator=torch.Generator().manual_seed(len(entries)))
    return Selection(n, index, Merge(torch.tensor(targets), segment, source, weights))


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_then_is_one_after_the_other(data: st.DataObject) -> None:
    first = data.draw(selections())
    second = data.draw(selections(len(first)))
    x = torch.randn(first.n, 3, generator=torch.Generator().manual_seed(0))
    both = first.then(second)
    torch.testing.assert_close(both.apply(x), second.apply(first.apply(x)))
    assert torch.equal(both.index, first.index[second.index])


def dense(selection: Selection) -> Tensor:
    """The selection as a matrix `[m, n]`."""
    weights = torch.zeros(len(selection), selection.n)
    weights[torch.arange(len(selection)), selection.index] = 1
    if selection.merge is not None:
        weights[selection.merge.target] = 0
        merge = selection.merge
        for t, s, w in zip(merge.entry_target, merge.source, merge.weight, strict=True):
            weights[t, s] += w
    return weights


@given(data=st.data(), rows=st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_packing_a_batch(data: st.DataObject, rows: int) -> None:
    n = data.draw(st.integers(1, 10))
    chosen = [data.draw(selections(n)) for _ in range(rows)]
    x = torch.randn(rows, n, 3, generator=torch.Generator().manual_seed(1))
    packed = pack(chosen)
    out = packed.apply(x)
    for row, selection in enumerate(chosen):
        pad = out.shape[1] - len(selection)
        torch.testing.assert_close(out[row, pad:], dense(selection) @ x[row])
        assert (out[row, :pad] == 0).all()
        if packed.valid is not None:
            assert packed.valid[row].tolist() == [False] * pad + [True] * len(selection)


@given(height=st.integers(1, 30), width=st.integers(1, 30), keep=st.floats(0.01, 0.99))
@settings(max_examples=200, deadline=None)
def test_coarse_grids_fit_the_budget(height: int, width: int, keep: float) -> None:
    budget = max(1, int(keep * height * width))
    rows, cols = coarse_grid(height, width, budget)
    assert 1 <= rows <= height
    assert 1 <= cols <= width
    assert rows * cols <= budget
    assert rows * cols >= budget / 2


def test_pooling_averages_cells() -> None:
    cell = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])  # a 2 x 4 grid in two squares
    found = pool(cell, 2)
    x = torch.arange(8.0)[:, None]
    assert found.index.tolist() == [4, 6]
    assert found.apply(x).squeeze(1).tolist() == [2.5, 4.5]
