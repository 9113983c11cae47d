"""Whole numbers that sum to what was asked for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from foveate.maths.shares import apportion, spread

SIZES = st.lists(st.integers(0, 20), min_size=1, max_size=8)


@given(SIZES, st.integers(0, 200))
def test_parts_are_as_equal_as_their_sizes_allow(sizes: list[int], count: int) -> None:
    found = spread(count, sizes)
    assert sum(found) == min(count, sum(sizes))
    assert all(number <= size for number, size in zip(found, sizes, strict=True))
    level = max(found)
    assert all(number in (level, level - 1, size) for number, size in zip(found, sizes, strict=True))


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(0, 20)), min_size=1, max_size=8), st.integers(0, 100))
def test_whole_numbers_are_near_what_is_wanted(places: list[tuple[float, int]], count: int) -> None:
    wanted, sizes = zip(*places, strict=True)
    found = apportion(max(count, sum(map(int, wanted))), wanted, sizes)
    assert all(min(int(share), size) <= n <= size for n, share, size in zip(found, wanted, sizes, strict=True))
    assert sum(found) == min(max(count, sum(map(int, wanted))), sum(sizes))


def test_the_largest_remainders_round_up() -> None:
    assert apportion(6, [1.2, 2.7, 1.6], [9, 9, 9]) == [1, 3, 2]
    assert apportion(6, [1.2, 2.7, 1.6], [9, 2, 9]) == [2, 2, 2]
    assert spread(5, [9, 1, 9]) == [2, 1, 2]
    assert spread(4, [9, 9, 9]) == [2, 1, 1]
