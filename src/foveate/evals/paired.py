"""Differences between two settings that answered the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foveate.errors import DataError


@dataclass(frozen=True)
class Difference:
    """Mean of the differences question by question, and the standard error of that mean.

    Attributes:
        mean: first minus second, in the scores' unit.
        error: None where a single question says nothing about the spread.
    """

    mean: float
    error: float | None


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """The paired difference of scores `[n]` and `[n]`: a question is compared with itself, so that what makes it easy
    or hard for both does not count as noise. The standard error is that of a mean, `s / sqrt(n)` with n - 1 degrees of
    freedom.

    Raises:
        DataError: no questions, or not the same number of them.
    """
    if len(first) != len(second) or len(first) == 0:
        raise DataError(
            f"Scores of {len(first)} and of {len(second)} questions cannot be paired; collect both settings on the "
            "same questions."
        )
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    n = len(differences)
    return Difference(float(differences.mean()), float(differences.std(ddof=1) / math.sqrt(n)) if n > 1 else None)
