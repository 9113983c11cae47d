"""Average budgets."""

from __future__ import annotations

import pytest

from foveate.errors import ConfigurationError
from foveate.maths.schedule import average, scaled_layers, single_stage, solve


def test_average_counts_the_layers_before_the_first_stage_in_full() -> None:
    assert average(((2, 0.5),), 32) == pytest.approx(17 / 32)
    assert average(((8, 0.5), (16, 0.25), (24, 0.125)), 32) == pytest.approx(15 / 32)


@pytest.mark.parametrize("keep", [0.1, 1 / 3, 0.5, 0.99])
def test_a_single_stage_meets_the_average(keep: float) -> None:
    found = single_stage(2, keep, 32, "x")
    assert found[0][0] == 2
    assert average(found, 32) == pytest.approx(keep)


def test_published_layers_keep_their_relative_depth() -> None:
    assert scaled_layers((2, 6, 15), 32, 32, "x") == (2, 6, 15)
    assert scaled_layers((2, 6, 15), 32, 16, "x") == (1, 3, 8)
    assert scaled_layers((2, 6, 15), 32, 6, "x") == (1, 2, 3)
    with pytest.raises(ConfigurationError, match="3 layers are too few"):
        scaled_layers((2, 6, 15), 32, 3, "x")


def test_what_cannot_be_reached_is_refused_with_what_can() -> None:
    with pytest.raises(ConfigurationError, match=r"stays above 0\.0625"):
        single_stage(2, 1 / 20, 32, "FastV")
    with pytest.raises(ConfigurationError, match=r"layers 0\.\.31"):
        single_stage(32, 0.5, 32, "FastV")
    with pytest.raises(ConfigurationError, match="Compose"):
        solve(lambda share: ((8, share),), 0.2, 32, "x")
