"""Every method that vLLM can run, on a tower with and one without a class token."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vllm.checkpoints import prompt, write
from tests.vllm.live import Asked, engine, noise, offline

METHODS = (
    "divprune", "downsample", "fastervlm", "hiprune", "prumerge", "random", "tome", "visionzip", "vispruner",
)  # fmt: skip


@pytest.fixture(scope="module", params=["llava", "qwen2_vl"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, write(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("method", METHODS)
def test_answers(checkpoint: tuple[str, Path], method: str) -> None:
    family, folder = checkpoint
    settings = {"method": method, "keep": "1/3"}
    asked = [
        Asked(prompt(family, "What is ", 1, " here? "), [noise(150, 100)]),
        Asked(prompt(family, 1, " and ", 1, "?"), [noise(100, 100, 1), noise(100, 180, 2)], 0.6),
        Asked(prompt(family, "What is ", 1, " here? "), [noise(150, 100)], 0.15),
    ]
    with engine(folder, settings) as running:
        assert running.answer(asked) == offline(folder, settings, asked)


def test_renumbered_positions(checkpoint: tuple[str, Path]) -> None:
    """Published code for LLaVA counts the survivors; vLLM then needs no positions of ours."""
    family, folder = checkpoint
    settings = {"method": "divprune", "keep": 0.3, "positions": "contiguous"}
    if family != "llava":
        pytest.skip("M-RoPE positions cannot be renumbered")
    asked = [Asked(prompt(family, "What is ", 1, " here? "), [noise(150, 100)])]
    with engine(folder, settings) as running:
        assert running.answer(asked) == offline(folder, settings, asked)
