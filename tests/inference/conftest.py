"""Zoo models, loaded once a module."""

from __future__ import annotations

import pytest

from foveate import zoo
from tests.inference.pairs import Pair


@pytest.fixture(scope="module", params=["foveate/scenes-llava", zoo.DEFAULT])
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(request.param)


@pytest.fixture(scope="module")
def qwen() -> Pair:
    return Pair(zoo.DEFAULT)
