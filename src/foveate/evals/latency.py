"""Time to first token against the unpruned model: paired per sample, with an interval that outliers do not move."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist, median
from typing import Any

Record = Mapping[str, Any]
LEVEL = 0.95


def first_token_ms(record: Record) -> float:
    """Milliseconds until the first token: the vision tower, what a method reads there included, and the prefill."""
    return float(record["vision_ms"] + record["prefill_ms"])


def ratios(records: Sequence[Record], reference: Sequence[Record]) -> list[float]:
    """Time to first token over the reference's on the same sample, one value per measurement.

    All settings answer a batch before the next one comes, so that a busy minute slows both sides of a pair. The rows of
    a batch share one measurement, which counts once.
    """
    found: list[float] = []
    before = None
    for own, other in zip(records, reference, strict=True):
        pair = (first_token_ms(own), first_token_ms(other))
        shared = own.get("batch", 1) > 1 and pair == before
        if not shared and pair[1] > 0:
            found.append(pair[0] / pair[1])
        before = pair
    return found


def median_bounds(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """One-sided lower and upper bounds of the median, each at `level`; None if there are too few values (four or less).

    From the order statistics alone: how many values lie below the median is binomial, whatever their distribution, so
    that outliers move nothing.
    """
    n = len(values)
    rank = _rank(n, level)
    if rank is None:
        return None
    ordered = sorted(values)
    return ordered[n - rank], ordered[rank - 1]


def compared(records: Sequence[Record], reference: Sequence[Record]) -> dict[str, Any]:
    """Columns of the summary: `ttft_ratio` (median of the paired ratios) and its interval, None if unknown."""
    own = ratios(records, reference)
    bounds = median_bounds(own)
    return {
        "ttft_ratio": median(own) if own else None,
        "ttft_ratio_interval": None if bounds is None else list(bounds),
    }


def _rank(n: int, level: float) -> int | None:
    """The least k for which at least k of n values lie below the median with probability 1 - level or less."""
    if n > 1000:  # the exact tail is slow there and no different
        return math.ceil(n / 2 + NormalDist().inv_cdf(level) * math.sqrt(n) / 2 + 0.5)
    tail, rank, found = 0, n + 1, None
    while rank > 0:
        rank -= 1
        tail += math.comb(n, rank)
        if tail > (1 - level) * 2**n:
            return found
        found = rank
    return found
