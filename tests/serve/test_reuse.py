"""Why earlier turns are read anew: a pruned cache of them is another prompt than the one that the conversation is."""

from __future__ import annotations

from typing import Any

import pytest

from foveate.inference.chats import assistant, user
from foveate.methods import make
from tests.serve.live import scenes, zoo_asker


def kept(chat: list[Any], method: Any) -> list[list[int]]:
    """Visual tokens of the first image that every layer holds, when the conversation is read at once."""
    asker = zoo_asker()
    (answer,) = asker.answer(asker.inputs([chat]), method, max_new_tokens=1)
    group, layers = answer.prefill.groups[0], answer.prefill.layers
    return [group.alive_at(layer).tolist() for layer in range(layers)]


def turns() -> tuple[list[Any], list[Any]]:
    """A first turn, and a conversation that begins with it and goes on."""
    (image, question), (_, second) = scenes(2)
    first = [user(question, [image])]
    return first, [*first, assistant("red"), user(second)]


@pytest.mark.parametrize("name", ["fastv", "sparsevlm"])
def test_methods_that_look_at_the_question_keep_others_for_the_next_one(name: str) -> None:
    """What the first turn has dropped, the second needs: no cache of the first turn holds it."""
    method = make(name, keep=1 / 3)
    before, now = (kept(chat, method) for chat in turns())
    assert any(set(after) - set(held) for held, after in zip(before, now, strict=True))


@pytest.mark.parametrize("name", ["divprune", "visionzip", "vitcop"])
def test_methods_that_look_at_the_image_alone_keep_the_same(name: str) -> None:
    method = make(name, keep=1 / 3)
    before, now = (kept(chat, method) for chat in turns())
    assert before == now
