"""Every method that vLLM can run answers as in the transformers engine with the same tokens dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from foveate.errors import FoveateError
from foveate.methods import registry
from foveate.plugins.vllm.images import Images
from foveate.plugins.vllm.plan import PruningPlan
from foveate.plugins.vllm.settings import Settings
from foveate.specs.tuned import Tuned
from tests.vllm.checkpoints import MAKERS, prompt, write
from tests.vllm.live import Asked, engine, noise, offline

FAMILIES = ("llava", "qwen2_5_vl")
"""With a class token and one axis of positions; without one, windowed, and three."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: write(family, tmp_path_factory.mktemp(family)) for family in MAKERS}


def requests(family: str) -> list[Asked]:
    """With one image each: the random choice depends on an image's place in the prompt, which vLLM does not know."""
    question = "How many red circles are there in this picture, and which of them is the largest? "
    one = prompt(family, question, 1, " Answer: ")
    return [
        Asked(one, [noise(120, 120)]), Asked(one, [noise(120, 120)], 0.6), Asked(one, [noise(160, 80, 1)], 0.15),
        Asked(prompt(family, 1, " What is it?"), [noise(70, 140, 2)]),
    ]  # fmt: skip


def same_answers(family: str, folder: Path, settings: dict[str, Any]) -> None:
    asked = requests(family)
    expected = offline(folder, settings, asked)
    assert len({tuple(answer) for answer in expected}) > 2, "answers must tell requests apart"
    with engine(folder, settings) as running:
        assert running.answer(asked) == expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", sorted(registry()))
def test_method(name: str, family: str, folders: dict[str, Path]) -> None:
    settings = {"method": name, "keep": 0.3}
    try:
        PruningPlan(Settings.of(settings), Images.of(AutoConfig.from_pretrained(folders[family])))
    except FoveateError as error:
        pytest.skip(f"refused: {error}")
    same_answers(family, folders[family], settings)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("qwen2_5_vl", {"method": "prumerge", "plus": True, "keep": 0.3}),
        ("llava", {"method": "visionzip", "positions": "contiguous", "keep": 0.3}),
        ("qwen2_5_vl", {"method": "divprune", "keep": 5}),
        ("llava_next", {"method": "downsample", "keep": 0.3}),
        ("internvl", {"method": "tome", "keep": 0.3}),
    ],
    ids=lambda value: value if isinstance(value, str) else value["method"],
)
def test_parameters(family: str, settings: dict[str, Any], folders: dict[str, Path]) -> None:
    same_answers(family, folders[family], settings)


def test_a_tuned_file(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "foveate.json"
    path.write_text(Tuned("fastervlm", {"keep": 0.3}, {"questions": 12}).to_json())
    same_answers("qwen2_5_vl", folders["qwen2_5_vl"], {"method": str(path)})
