"""Greedy answers of vLLM with the plugin are those of the transformers engine with the same tokens dropped."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foveate.plugins.vllm.settings import KEEP
from tests.vllm.checkpoints import MAKERS, prompt, write
from tests.vllm.live import CHUNK, Asked, Engine, engine, noise, offline

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


QUESTION = "How many red circles are there in this picture, and which of them is the largest? "


def requests(family: str) -> list[Asked]:
    """No, one and two images of several shapes; one image under several keeps, and twice; one token of an image."""
    first, wide, tall = noise(120, 120), noise(160, 80, 1), noise(70, 140, 2)
    one, two = prompt(family, QUESTION, 1, " Answer: "), prompt(family, "A ", 1, " or B ", 1, "? " + QUESTION)
    return [
        Asked(one, [first]), Asked(one, [first], 0.6), Asked(one, [first], 1.0), Asked(one, [wide], 0.12),
        Asked(two, [first, tall]), Asked(two, [tall, wide], 0.5), Asked(QUESTION * 3), Asked(one, [tall]),
        Asked(one, [first], 0.001), Asked(two, [wide, wide], 0.001), Asked(two, [first, first]),
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


def test_image_across_two_chunks(family: str, folder: Path, running: Engine) -> None:
    """A piece of a prompt ends within the image."""
    tokenizer, text = running.llm.get_tokenizer(), "A"
    while len(tokenizer(text).input_ids) < CHUNK - 4:
        text += " A"
    asked = [Asked(prompt(family, text, 1, " Answer: "), [noise(120, 120, 5)], 0.6)]
    assert running.answer(asked) == offline(folder, SETTINGS, asked)
    assert running.lengths[0] > CHUNK + 4


def test_caches_do_not_mix(family: str, folder: Path, running: Engine) -> None:
    """The same image under another keep is as new as another image; under the same keep it is found again."""
    text = prompt(family, QUESTION, 1, QUESTION * 2)
    image, other = noise(120, 120, 7), noise(120, 120, 8)
    asked = [Asked(text, [image]), Asked(text, [image]), Asked(text, [image], 0.7), Asked(text, [other])]
    asked += [Asked(text, [image], 0.7), Asked(text, [image], SETTINGS["keep"])]
    expected = offline(folder, SETTINGS, asked)
    cached = []
    for one, answer in zip(asked, expected, strict=True):
        assert running.answer([one]) == [answer]
        cached += running.cached
    _, again, another_keep, another_image, keep_again, named = cached
    assert another_keep == another_image < min(again, keep_again)
    assert named == again, "the server's keep, named by the request, is the same setting"


def test_a_named_image_under_another_keep(family: str, folder: Path, running: Engine) -> None:
    """A name that the client gives stands for the image in vLLM's caches."""
    text, image = prompt(family, QUESTION, 1, QUESTION), noise(120, 120, 9)
    asked = [Asked(text, [image]), Asked(text, [image], 0.7), Asked(text, [image])]
    named = [running.answer([one], uuids="name")[0] for one in asked]
    assert named == offline(folder, SETTINGS, asked)
    assert running.cached[0]


@pytest.mark.parametrize("keep", [0, -1, 1.5, float("nan"), "0.5", True, [0.1, 0.5], {}])
def test_no_share(keep: Any, family: str, running: Engine) -> None:
    """One share for all images of a request, or a refusal that leaves the engine running."""
    asked = Asked(prompt(family, QUESTION, 1, " or ", 1), [noise(120, 120), noise(160, 80)])
    with pytest.raises(ValueError, match=rf"{KEEP}=.* must be a share of the visual tokens in \(0, 1\], one for all"):
        running.answer([asked], **{KEEP: keep})
    assert running.answer([asked])


@pytest.mark.parametrize("key", ["size", "min_pixels", "do_resize", "foveate_salt", "images_kwargs"])
def test_requests_choose_nothing_else(key: str, family: str, running: Engine) -> None:
    asked = Asked(prompt(family, QUESTION, 1), [noise(120, 120)])
    others: dict[str, Any] = {key: 1}
    with pytest.raises(ValueError, match=f"{key} cannot be set per request"):
        running.answer([asked], **others)
    assert running.answer([asked])
