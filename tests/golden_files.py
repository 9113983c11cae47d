"""Where the numeric reference fixtures are, and how results are compared with them."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(os.environ.get("FOVEATE_GOLDEN", Path(__file__).resolve().parents[2] / "shared" / "golden"))


def golden_path(name: str) -> Path:
    """Folder or file `name` of the fixtures; skips the test where they are not installed."""
    path = GOLDEN / name
    if not path.exists():
        path = Path(__file__).parent / "golden" / name  # the small ones travel with the tests
    if not path.exists():
        pytest.skip(f"reference fixtures not found: {path} (set FOVEATE_GOLDEN to their folder)")
    return path


def golden_tensors(name: str) -> dict[str, Tensor]:
    return load_file(golden_path(name))


def golden_cases(pattern: str) -> list[str]:
    """Fixture folders or files that exist, for parametrisation; the pattern itself if there are none."""
    found = sorted(str(p.relative_to(GOLDEN)) for p in GOLDEN.glob(pattern))
    return found or [pattern]


def assert_close(actual: Tensor, expected: Tensor, atol: float = 2e-4, rtol: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol, check_dtype=False)


def assert_gradient_close(name: str, actual: Tensor | None, expected: Tensor, rtol: float = 1e-4) -> None:
    """Within `rtol` of the parameter's largest entry."""
    assert actual is not None, f"{name} has no gradient"
    scale = expected.abs().max().item()
    difference = (actual - expected).abs().max().item()
    assert difference <= rtol * max(scale, 1e-8), f"{name}: {difference:.3g} of {scale:.3g}"
