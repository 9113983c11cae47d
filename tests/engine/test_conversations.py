"""Chats of several turns against the independent reference: images at random turns, crops at random places."""

from __future__ import annotations

import os
import random
from contextlib import ExitStack

import pytest
import torch
from transformers import DynamicCache

import foveate
from foveate.errors import ConfigurationError, InputError
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


class Failing(Random):
    """Raises while it chooses, if it is told so."""

    fails = False

    def select(self, view: foveate.View) -> torch.Tensor:
        if Failing.fails:
            raise ZeroDivisionError
        return super().select(view)  # type: ignore[return-value]


def test_a_turn_that_failed_was_never_there(tiny: Tiny) -> None:
    """It may be asked again on the same cache, with its image."""
    chat = Chat.start(tiny, Failing(0.5), 1)
    chat.ask([[3, (4, 4), 2]], 1, 3, True)
    ids, visual, images = chat.ids, chat.visual, [list(own) for own in chat.images]
    Failing.fails = True
    try:
        with pytest.raises(ZeroDivisionError):
            chat.ask([[2, (2, 4), 3]], 2, 3, True)
    finally:
        Failing.fails = False
    assert chat.cache.conversation.images() == [1]
    chat.ids, chat.visual, chat.images = ids, visual, images
    assert chat.ask([[2, (2, 4), 3]], 2, 3, True) < 1e-3
    assert len(chat.dropped) == 2


def test_blocks_in_blocks_leave_the_model_as_it_was() -> None:
    """An unpruned conversation goes on outside at the positions that stock code would give it."""
    tiny = make_tiny("qwen2_5_vl")
    inputs, found = tiny.batch([[3, (2, 4), 5]]), []
    for depth in (0, 1, 2):
        cache = DynamicCache(config=tiny.model.config.get_text_config())
        options = {"max_new_tokens": 3, "do_sample": False, "past_key_values": cache}
        with ExitStack() as stack:
            for _ in range(depth):
                stack.enter_context(foveate.prune(tiny.model, None))
            ids = torch.cat([tiny.model.generate(**inputs, **options), torch.tensor([[7, 8]])], 1)
        found.append(tiny.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_cache_cropped_to_nothing_is_as_new() -> None:
    tiny = make_tiny("llava")
    inputs = tiny.batch([[3, (4, 4), 5]])
    cache = DynamicCache(config=tiny.model.config.get_text_config())
    with foveate.prune(tiny.model, Random(0.5, positions="contiguous")):
        generate(tiny.model, inputs, 2, past_key_values=cache)
    cache.crop(-cache.get_seq_length())
    with foveate.prune(tiny.model, Random(0.5)):
        again = generate(tiny.model, inputs, 4, past_key_values=cache)[1]
        assert torch.equal(again, generate(tiny.model, inputs, 4)[1])


def test_renumbered_positions_know_one_turn_with_images(tiny: Tiny) -> None:
    chat = Chat.start(tiny, Random(0.5, positions="contiguous"), 1)
    chat.ask([[3, (4, 4), 2]], 1, 3, True)
    with pytest.raises(ConfigurationError, match="positions='original'"):
        chat.ask([[2, (2, 4), 3]], 2, 3, True)


def test_assisted_decoding_in_a_later_turn_is_refused(tiny: Tiny) -> None:
    """Stock code reads the whole conversation a second time then."""
    chat = Chat.start(tiny, Random(0.5), 1)
    chat.ask([[3, (4, 4), 2]], 1, 3, True)
    with pytest.raises(InputError, match="Assisted decoding"):
        chat.ask([[2, (4, 4), 3]], 2, 6, True, prompt_lookup_num_tokens=3, max_matching_ngram_size=1)
