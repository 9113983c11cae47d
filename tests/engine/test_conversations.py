"""Chats of several turns against the independent reference: images at random turns, crops at random places."""

from __future__ import annotations

import os
import random

import pytest
import torch

import foveate
from foveate.methods import Random, registry
from tests.oracle import Chat, random_turn
from tests.reference import Drop, generate
from tests.test_matrix import configured
from tests.tiny import Tiny, make_tiny

CASES = int(os.environ.get("FOVEATE_CASES", "24"))
"""Random chats; hundreds were tried with FOVEATE_CASES=400."""


def random_method(rng: random.Random, tiny: Tiny) -> foveate.Method | None:
    kind = rng.random()
    if kind < 0.15:
        return None
    if kind < 0.3:
        layers = tuple(sorted(rng.sample(range(6), rng.randint(1, 3))))
        return Drop(layers, rng.choice([0.1, 0.5, 0.8]), rng.randint(0, 9))
    if kind < 0.4:
        return Drop((rng.randint(1, 6),), rng.choice([0.1, 0.5]), compact=True)
    return configured(rng.choice(list(registry())), rng.choice([1 / 3, 0.5, 0.7]), tiny)


@pytest.mark.parametrize("seed", range(CASES))
def test_a_random_chat_equals_the_masked_reference(seed: int) -> None:
    rng = random.Random(seed)
    tiny = make_tiny(rng.choice(["llava", "qwen2_5_vl"]))
    rows = rng.choice([1, 1, 2])
    chat = Chat.start(tiny, random_method(rng, tiny), rows)
    turns = rng.randint(2, 6)
    for turn in range(turns):
        if turn and rng.random() < 0.4:
            chat.go_back(rng.randrange(len(chat.lengths)))
        options = {}
        if rows == 1 and chat.cache is None and chat.method is not None:  # stock code reads a cached prompt twice
            options["prompt_lookup_num_tokens"] = rng.randint(1, 5)
        parts = random_turn(rng, tiny, rows)
        difference = chat.ask(parts, seed * 10 + turn, rng.randint(1, 4), rng.random() < 0.7, **options)
        assert difference < 1e-3, (turn, parts, str(chat.method))


@pytest.fixture(params=["llava", "qwen2_5_vl"])
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return make_tiny(request.param)


def test_a_cropped_image_turn_never_was(tiny: Tiny) -> None:
    """Crop past a turn with an image, then say something else, with another image: as a chat without that turn."""
    for method in (Random(0.5), Drop((0, 3)), configured("vitcop", 0.5, tiny), configured("glimpse_prune", 0.5, tiny)):
        chat, other = (Chat.start(tiny, method, 1) for _ in range(2))
        for one in (chat, other):
            assert one.ask([[3, (4, 4), 2]], 1, 3, True) < 1e-3
        chat.ask([[2, (3, 5), 3]], 2, 3, True)
        chat.go_back(1)
        assert chat.cache.conversation == other.cache.conversation
        for one in (chat, other):
            assert one.ask([[1, (2, 4), 3]], 3, 3, True) < 1e-3
            assert one.ask([[4]], 4, 3, True) < 1e-3
        assert torch.equal(chat.ids, other.ids)


@pytest.mark.parametrize("continued", [None, Random(1.0), Random(0.5)])
def test_chats_on_one_model_do_not_mix(tiny: Tiny, continued: foveate.Method | None) -> None:
    """Positions come from the conversation, whatever other chats do in between, batches of other sizes too."""
    alone = Chat.start(tiny, continued, 1)
    alone.ask([[3, (2, 5), 2]], 1, 3, True)
    expected = alone.ask([[4]], 2, 3, False)
    mixed = Chat.start(tiny, continued, 1)
    mixed.ask([[3, (2, 5), 2]], 1, 3, True)
    with foveate.prune(tiny.model, continued):
        generate(tiny.model, tiny.batch([[3, (5, 5), 2], [1, (4, 2), 9], [7]]), 3)
    assert mixed.ask([[4]], 2, 3, False) < 1e-3
    assert expected < 1e-3
    assert torch.equal(mixed.ids, alone.ids)


def test_text_that_brings_the_images_along_is_text(tiny: Tiny) -> None:
    """What Qwen's users do: every turn comes with all images of the conversation."""
    for method in (None, Random(0.5), configured("vitcop", 0.5, tiny)):
        with_images, without = (Chat.start(tiny, method, 1) for _ in range(2))
        for chat in (with_images, without):
            chat.ask([[3, (4, 4), 2, (2, 4), 1]], 1, 3, True)
        assert with_images.ask([[4]], 2, 3, bring_all=True) < 1e-3
        assert without.ask([[4]], 2, 3, bring_all=False) < 1e-3
        assert torch.equal(with_images.ids, without.ids)


def test_rows_of_a_cache_keep_their_images(tiny: Tiny) -> None:
    """Select, repeat and reorder act on what a row has seen, as on its tensors."""
    with foveate.prune(tiny.model, Random(0.5)):
        out = tiny.model.generate(
            **tiny.batch([[3, (4, 4), 2], [1, (2, 4), 2, (2, 2), 3], [4]]),
            max_new_tokens=2, do_sample=False, return_dict_in_generate=True,
        )  # fmt: skip
    cache = out.past_key_values
    assert cache.conversation.images() == [1, 2, 0]
    cache.batch_repeat_interleave(2)
    assert cache.conversation.images() == [1, 1, 2, 2, 0, 0]
    cache.reorder_cache(torch.tensor([5, 2, 0]))
    assert cache.conversation.images() == [0, 2, 1]
    cache.batch_select_indices(torch.tensor([1]))
    assert cache.conversation.images() == [2]
    spans = cache.conversation.rows[0][0].images
    assert spans[0].end <= spans[1].start
    cache.crop(spans[1].end - 1 - cache.get_seq_length())  # cuts the second image in two
    assert cache.conversation.images() == [1]
