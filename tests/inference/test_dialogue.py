"""Turns over one pruned cache say what a whole prompt would, and a turn that failed was never there."""

from __future__ import annotations

from typing import Any

import pytest

from foveate import zoo
from foveate.errors import ConfigurationError, InputError
from foveate.inference.answer import Asker
from foveate.inference.dialogue import Dialogue
from foveate.methods import make
from foveate.scenes.splits import load


@pytest.fixture(scope="module")
def asker() -> Asker:
    return Asker.load(zoo.DEFAULT, 8, device="cpu")


@pytest.fixture(scope="module")
def scenes() -> list[Any]:
    return load("test", 3)


def texts(conversation: Dialogue) -> list[str]:
    return [message["content"][-1]["text"] for message in conversation.messages]


@pytest.mark.parametrize("method", [None, make("random", keep=0.5), make("vitcop", keep=0.5)], ids=str)
def test_turns_are_those_of_whole_prompts(asker: Asker, scenes: list[Any], method: Any) -> None:
    """Of one picture, pruning chooses alike whatever follows; so every turn equals the whole conversation read anew."""
    conversation = Dialogue(asker, method)
    for number, scene in enumerate(scenes):
        said = "".join(conversation.say(scene.question, [scenes[0].images[0]] if not number else []))
        assert texts(conversation)[-2:] == [scene.question, said.strip()]
        [whole] = asker.ask([conversation.messages[:-1]], method)
        if method is None or method.name == "random":  # ViTCoP reads the text behind the picture
            assert said.strip() == whole.text
    unpruned = Dialogue(asker)
    assert "".join(unpruned.say(scenes[0].question, [scenes[0].images[0]]))
    if method is not None:
        assert conversation.reading is not None
        assert conversation.reading.keep_ratio < 0.6
        assert conversation.kv_bytes < 1.5 * unpruned.kv_bytes


def test_a_later_turn_reads_its_own_tokens_only(asker: Asker, scenes: list[Any], monkeypatch: Any) -> None:
    conversation = Dialogue(asker, make("random", keep=0.5))
    assert "".join(conversation.say(scenes[0].question, scenes[0].images))
    widths: list[int] = []
    real = type(asker.model.model.language_model).forward

    def forward(self: Any, *args: Any, **options: Any) -> Any:
        widths.append(options["inputs_embeds"].shape[1])
        return real(self, *args, **options)

    monkeypatch.setattr(type(asker.model.model.language_model), "forward", forward)
    assert "".join(conversation.say(scenes[1].question))
    assert max(widths) < 60
    assert len(conversation.messages) == 4


def test_another_method_reads_the_pictures_again(asker: Asker, scenes: list[Any]) -> None:
    conversation = Dialogue(asker, make("random", keep=0.25))
    assert "".join(conversation.say(scenes[0].question, scenes[0].images))
    held = conversation.kv_bytes
    with pytest.raises(ConfigurationError, match="cannot keep"):
        conversation.use(make("fastv", keep=0.01))
    assert conversation.kv_bytes == held
    conversation.use(None)
    said = "".join(conversation.say(scenes[1].question))
    assert said.strip() == asker.ask([conversation.messages[:-1]])[0].text
    assert conversation.kv_bytes > 2 * held
    conversation.forget()
    assert (conversation.messages, conversation.kv_bytes, conversation.reading) == ([], 0, None)


def test_a_turn_that_was_stopped_or_refused_was_never_there(asker: Asker, scenes: list[Any]) -> None:
    conversation = Dialogue(asker, make("random", keep=0.5))
    first = "".join(conversation.say(scenes[0].question, scenes[0].images)).strip()
    with pytest.raises(InputError, match="image_pad"):
        conversation.say("What is <|image_pad|>?")
    stopped = conversation.say("Tell me about it at length.", scenes[1].images)
    next(iter(stopped))
    stopped.close()
    assert texts(conversation) == [scenes[0].question, first]
    again = "".join(conversation.say(scenes[1].question))
    assert again.strip() == asker.ask([conversation.messages[:-1]], conversation.method)[0].text
