"""Paired differences and their standard errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from foveate.errors import DataError
from foveate.evals.paired import difference


def test_by_hand() -> None:
    found = difference([1, 1, 0, 1], [0, 1, 0, 0])  # differences 1, 0, 0, 1: mean 1/2, variance 1/3
    assert found.mean == 0.5
    assert found.error == pytest.approx(math.sqrt(1 / 3 / 4))


def test_what_both_find_easy_or_hard_is_no_noise() -> None:
    assert difference([1, 0, 1, 0], [1, 0, 1, 0]).error == 0
    assert difference([0.5, 1.5, 0.5], [0, 1, 0]).error == pytest.approx(0)


def test_turned_round_only_the_sign_changes() -> None:
    one, other = difference([1, 0, 0], [0, 0, 1 / 3]), difference([0, 0, 1 / 3], [1, 0, 0])
    assert (one.mean, one.error) == pytest.approx((-other.mean, other.error))


def test_the_error_is_the_spread_of_the_mean_over_many_draws() -> None:
    random = np.random.default_rng(0)
    easy = random.random((2000, 50))
    first, second = random.random((2000, 50)) < easy, random.random((2000, 50)) < 0.7 * easy
    found = [difference(a, b) for a, b in zip(first.astype(float), second.astype(float), strict=True)]
    assert np.mean([d.error for d in found]) == pytest.approx(np.std([d.mean for d in found]), rel=0.05)


def test_one_question_has_no_error() -> None:
    found = difference([1], [0])
    assert (found.mean, found.error) == (1, None)


@pytest.mark.parametrize(("first", "second"), [([], []), ([1, 0], [1])])
def test_what_cannot_be_paired_is_refused(first: list[float], second: list[float]) -> None:
    with pytest.raises(DataError, match="same questions"):
        difference(first, second)
