"""Shared fixtures: tiny random models of every family, and batches for them."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import pytest
import torch

from tests.tiny import FAMILIES, Tiny, make_tiny

# several test processes share the cores
torch.set_num_threads(1)


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


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the reference fixtures; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("FOVEATE_GOLDEN", Path(__file__).parents[1] / ".." / "shared" / "golden"))
    if not folder.is_dir():
        pytest.skip(f"no reference fixtures at {folder} (set FOVEATE_GOLDEN)")
    return folder
