"""Greedy answers of vLLM with the plugin are those of the transformers engine with the same tokens dropped."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vllm.checkpoints import MAKERS, prompt, write
from tests.vllm.live import Asked, Engine, engine, noise, offline

SETTINGS = {"method": "visionzip", "keep": 0.3}


@pytest.fixture(scope="module", params=sorted(MAKERS))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(family, tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Engine]:
    with engine(folder, SETTINGS) as found:
        yield found


def requests(family: str) -> list[Asked]:
    """No, one and two images of several shapes; the same image under several keeps."""
    first, wide, tall = noise(120, 120), noise(160, 80, 1), noise(70, 140, 2)
    question = "How many red circles are there in this picture, and which of them is the largest? "
    one, two = prompt(family, question, 1, " Answer: "), prompt(family, "A ", 1, " or B ", 1, "? " + question)
    return [
        Asked(one, [first]), Asked(one, [first], 0.6), Asked(one, [first], 1.0), Asked(one, [wide], 0.12),
        Asked(two, [first, tall]), Asked(two, [tall, wide], 0.5), Asked(question * 3), Asked(one, [tall]),
    ]  # fmt: skip


def test_answers_in_any_company(family: str, folder: Path, running: Engine) -> None:
    """Together, in pieces, shuffled, and once more from the prefix cache."""
    asked = requests(family)
    expected = offline(folder, SETTINGS, asked)
    assert len({tuple(answer) for answer in expected}) > len(expected) // 2, "answers must tell requests apart"
    assert running.answer(asked) == expected
    assert running.lengths[0] < running.lengths[1] < running.lengths[2]
    order = list(range(len(asked)))
    random.Random(0).shuffle(order)
    again = running.answer([asked[i] for i in order])
    assert again == [expected[i] for i in order]
    assert sum(running.cached) > 100
    assert [running.answer([one])[0] for one in asked] == expected
