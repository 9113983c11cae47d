"""What a person calls first, a little wrong: it either works or says what to write."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import foveate
from foveate.errors import BudgetError, ConfigurationError, FoveateError, InputError
from foveate.inference.answer import Asker
from foveate.inference.chats import user
from foveate.inference.doctor import of_checkpoint
from foveate.methods import Random, find
from tests.tiny import Tiny

PICTURE = Image.new("RGB", (8, 8))


def test_a_block_that_was_never_entered_warns(tiny: Tiny) -> None:
    with pytest.warns(UserWarning, match="with foveate.prune"):
        foveate.prune(tiny.model, "random", keep=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with foveate.prune(tiny.model, Random(keep=0.5)) as trace:
            pass
        assert trace.prefills == []


@pytest.mark.parametrize(
    "one", ["a.png", Path("a.png"), b"png", io.BytesIO(b"png"), PICTURE, np.zeros((8, 8, 3)), {"bytes": b"png"}]
)
def test_one_picture_needs_no_list(one: Any) -> None:
    assert user("What?", one) == user("What?", [one])
    assert len(user("What?", one)["content"]) == 2


def test_several_pictures_come_in_anything_that_can_be_iterated() -> None:
    for several in ([PICTURE] * 3, (PICTURE,) * 3, (PICTURE for _ in range(3)), np.zeros((3, 8, 8, 3))):
        assert len(user("What?", several)["content"]) == 4
    with pytest.raises(InputError, match="the question first"):
        user([PICTURE], "What?")  # type: ignore[arg-type]


def test_a_question_takes_a_method_by_its_text() -> None:
    asker = Asker.load("foveate/scenes-qwen2_5_vl", max_new_tokens=2)
    chats = [[user("What?", Image.new("RGB", (112, 112)))]]
    by_name, by_object = (asker.ask(chats, method)[0] for method in ("random:keep=1/4", Random(keep=1 / 4)))
    assert by_name.tokens == by_object.tokens
    assert by_name.kept_tokens == by_object.kept_tokens == by_name.visual_tokens / 4
    with pytest.raises(InputError, match="PIL"):
        by_name.trace.overlay("a.png")  # type: ignore[arg-type]


def test_names_of_methods_are_suggested() -> None:
    with pytest.raises(ConfigurationError, match=r"Did you mean vitcop\?"):
        find("vitcp")
    with pytest.raises(ConfigurationError, match="Did you mean vidcom2 or visionzip or vispruner or vitcop or"):
        find("vi")


def test_a_budget_in_quotes_says_what_to_write(tiny: Tiny) -> None:
    with pytest.raises(BudgetError, match="without quotes"):
        foveate.prune(tiny.model, "random", keep="1/9")  # type: ignore[arg-type]


def test_doctor_says_of_an_unknown_model_what_loading_says() -> None:
    with pytest.raises(FoveateError, match="foveate/scenes-llava"):
        of_checkpoint("nope")
