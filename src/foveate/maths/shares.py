"""Whole numbers that sum to what was asked for."""

from __future__ import annotations

from collections.abc import Sequence


def apportion(count: int, wanted: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """Whole numbers near `wanted`, none larger than its size, that sum to `count` (or to all there is): the largest
    remainders round up, and what full places cannot take goes to those that are short of most."""
    numbers = [min(int(share), size) for share, size in zip(wanted, sizes, strict=True)]
    while (missing := min(count, sum(sizes)) - sum(numbers)) > 0:
        room = [place for place, size in enumerate(sizes) if numbers[place] < size]
        for place in sorted(room, key=lambda place: numbers[place] - wanted[place])[:missing]:
            numbers[place] += 1
    return numbers


def spread(count: int, sizes: Sequence[int]) -> list[int]:
    """`count` in about equal parts, none larger than its size; the first ones get what is left over."""
    return apportion(count, [count / max(len(sizes), 1)] * len(sizes), sizes)
