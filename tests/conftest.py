"""Shared fixtures: tiny random models of every family, and batches for them."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import pytest
import torch
import transformers

from tests import older
from tests.tiny import FAMILIES, Tiny, make_tiny

# several test processes share the cores
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not transformers.__version__.startswith("5.17."):
        return
    for item in items:
        if why := older.reason(item.nodeid):
            item.add_marker(pytest.mark.xfail(reason=why))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """What a test draws must not depend on which tests this process ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def tiny(request: pytest.FixtureRequest) -> Tiny:
    """A tiny random model of each family."""
    return make_tiny(request.param)


@pytest.fixture(scope="session")
def tiny_llava() -> Tiny:
    return make_tiny("llava")


@pytest.fixture(scope="session")
def tiny_qwen() -> Tiny:
    return make_tiny("qwen2_5_vl")


class Golden:
    """Folders of reference fixtures by name; asking for one that is not there skips the test."""

    def __init__(self) -> None:
        root = Path(__file__).parent
        self.roots = [Path(os.environ.get("FOVEATE_GOLDEN", root.parents[1] / "shared" / "golden")), root / "golden"]

    def __truediv__(self, name: str) -> Path:
        for root in self.roots:
            if (root / name).is_dir():
                return root / name
        pytest.skip(f"no reference fixtures {name} in {self.roots[0]} (set FOVEATE_GOLDEN)")


@pytest.fixture(scope="session")
def golden() -> Golden:
    """The reference fixtures: `FOVEATE_GOLDEN`, else `../shared/golden`, else the small ones beside the tests."""
    return Golden()
