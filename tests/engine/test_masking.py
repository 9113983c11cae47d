"""Dropping tokens physically before layer k gives the logits of keeping and masking them from layer k on."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.reference import Drop, check_dropping_is_masking
from tests.tiny import FAMILIES, LAYERS

STEPS = 8


def check(family: str, attention: str, rows: list, method: Drop, steps: int = STEPS) -> None:
    check_dropping_is_masking(family, attention, rows, method, steps)


ROWS = [[3, (4, 4), 5], [2, (4, 6), 3, (2, 4), 4], [7]]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("layers", [(0,), (2,), (0, 2, 5), (1, 3)])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_padded_batch(family: str, attention: str, layers: tuple[int, ...]) -> None:
    check(family, attention, ROWS, Drop(layers))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_selection_as_mask_is_the_same(family: str) -> None:
    check(family, "sdpa", ROWS, Drop((0, 3), as_mask=True))


part = st.one_of(st.integers(1, 6), st.tuples(st.sampled_from([2, 4]), st.sampled_from([2, 4, 6])))
row = st.lists(part, min_size=1, max_size=4).map(lambda parts: [2, *parts, 3])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    attention=st.sampled_from(["eager", "sdpa"]),
    rows=st.lists(row, min_size=1, max_size=3),
    layers=st.sets(st.integers(0, LAYERS - 1), min_size=1, max_size=3).map(lambda s: tuple(sorted(s))),
    keep=st.sampled_from([0.1, 0.3, 0.7, 0.95]),
    seed=st.integers(0, 5),
)
def test_any_case(family: str, attention: str, rows: list, layers: tuple[int, ...], keep: float, seed: int) -> None:
    check(family, attention, rows, Drop(layers, keep, seed), steps=3)
