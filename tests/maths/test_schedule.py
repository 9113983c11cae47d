"""Average budgets."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from foveate.core.method import Method, Stage
from foveate.core.view import ModelInfo
from foveate.errors import ConfigurationError
from foveate.maths.schedule import average, scaled_layers, solve

INFO = ModelInfo("llava", 32, 24, True)


@dataclass(frozen=True)
class At(Method):
    """A method with one stage."""

    layer: int = 0
    compact: bool = False

    def stages(self, info: ModelInfo) -> list[Stage]:
        return [Stage(self.layer, compact_earlier=self.compact)]


def test_average_counts_the_layers_before_the_first_stage_in_full() -> None:
    assert average([2], [0.5], 32) == pytest.approx(17 / 32)
    assert average([8, 16, 24], [0.5, 0.25, 0.125], 32) == pytest.approx(15 / 32)


@pytest.mark.parametrize("keep", [0.1, 1 / 3, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_single_stage_meets_the_average(keep: float, layer: int) -> None:
    shares = At(layer=layer).shares(INFO, keep)
    assert average([layer], shares, 32) == pytest.approx(keep)


def test_published_layers_keep_their_relative_depth() -> None:
    assert scaled_layers((2, 6, 15), 32, 32, "x") == (2, 6, 15)
    assert scaled_layers((2, 6, 15), 32, 16, "x") == (1, 3, 8)
    assert scaled_layers((2, 6, 15), 32, 6, "x") == (1, 2, 3)
    with pytest.raises(ConfigurationError, match="3 layers are too few"):
        scaled_layers((2, 6, 15), 32, 3, "x")


def test_what_cannot_be_reached_is_refused_with_what_can() -> None:
    with pytest.raises(ConfigurationError, match=r"stays above 0\.0625"):
        At(layer=2).shares(INFO, 1 / 20)
    with pytest.raises(ConfigurationError, match=r"layers 0\.\.31"):
        At(layer=32).shares(INFO, 0.5)
    with pytest.raises(ConfigurationError, match="Compose"):
        solve([8], lambda share: [share], 0.2, 32, "x")
    with pytest.raises(ConfigurationError, match=r"stays above 1"):  # every layer reads everything
        At(layer=32, compact=True).shares(INFO, 0.5)
