"""What prunes nothing refuses nothing and adds nothing: `None` and `keep=1.0` are the stock model in every setting."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

import foveate
from foveate.methods import Random, ViTCoP
from tests.reference import generate
from tests.tiny import IMAGE, Tiny, make_tiny

NOTHING = [None, Random(1.0), ViTCoP(keep=1.0)]


@pytest.fixture(params=["llava", "qwen2_5_vl"])
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return make_tiny(request.param)


@pytest.mark.parametrize(
    "options",
    [
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 8},
        {"num_beams": 3},
        {"prompt_lookup_num_tokens": 2},
        {"use_cache": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", NOTHING, ids=str)
def test_generate(tiny: Tiny, method: foveate.Method | None, options: dict[str, Any]) -> None:
    rows = [[3, (4, 4), 5]] if "prompt_lookup_num_tokens" in options else [[3, (4, 4), 5], [2, (4, 4), 3]]
    inputs = tiny.batch(rows)
    stock = tiny.model.generate(**inputs, max_new_tokens=4, do_sample=False, **options)
    with foveate.prune(tiny.model, method):
        assert torch.equal(tiny.model.generate(**inputs, max_new_tokens=4, do_sample=False, **options), stock)


@pytest.mark.parametrize("method", NOTHING, ids=str)
def test_plain_forward_passes(tiny: Tiny, method: foveate.Method | None) -> None:
    inputs = tiny.batch([[3, (4, 4), 5]])
    right = {name: torch.nn.functional.pad(inputs[name], (0, 3)) for name in ("input_ids", "attention_mask")}
    if "mm_token_type_ids" in inputs:
        right["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 3))
    text = {"input_ids": torch.tensor([[5, IMAGE, 7, IMAGE, 9]])}  # placeholders without an image are text
    for given in (inputs, {**inputs, **right}, text, {**inputs, "labels": inputs["input_ids"]}):
        with torch.no_grad():
            stock = tiny.model(**given)
            with foveate.prune(tiny.model, method):
                found = tiny.model(**given)
        assert torch.equal(found.logits, stock.logits)
        assert type(found.past_key_values) is type(stock.past_key_values)


@pytest.mark.parametrize("method", NOTHING, ids=str)
def test_two_forward_passes_written_by_hand(tiny: Tiny, method: foveate.Method | None) -> None:
    """The second continues the cache that the first one made."""
    inputs, more = tiny.batch([[3, (2, 4), 5]]), torch.tensor([[7, 8]])

    def logits() -> torch.Tensor:
        first = tiny.model(**inputs)
        return tiny.model(input_ids=more, past_key_values=first.past_key_values).logits

    with torch.no_grad():
        stock = logits()
        with foveate.prune(tiny.model, method):
            assert torch.equal(logits(), stock)


def test_an_unpruned_conversation_may_leave_the_block(tiny: Tiny) -> None:
    inputs = tiny.batch([[3, (2, 4), 5]])

    def answer(block: bool) -> torch.Tensor:
        cache = DynamicCache(config=tiny.model.config.get_text_config())
        options = {"max_new_tokens": 3, "do_sample": False, "past_key_values": cache}
        if block:
            with foveate.prune(tiny.model, None):
                ids = tiny.model.generate(**inputs, **options)
        else:
            ids = tiny.model.generate(**inputs, **options)
        ids = torch.cat([ids, torch.tensor([[7, 8]])], 1)
        return tiny.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)

    assert torch.equal(answer(block=True), answer(block=False))


@pytest.mark.parametrize("method", [*NOTHING, Random(0.5)], ids=str)
def test_checkpointed_training_has_no_cache(tiny: Tiny, method: foveate.Method | None) -> None:
    tiny.model.train()
    tiny.model.gradient_checkpointing_enable()
    try:
        with foveate.prune(tiny.model, method):
            assert tiny.model(**tiny.batch([[3, (4, 4), 5]])).past_key_values is None
    finally:
        tiny.model.gradient_checkpointing_disable()
        tiny.model.eval()


@pytest.mark.parametrize("method", [None, Random(1.0), Random(0.5)], ids=str)
def test_a_mismatch_keeps_the_stock_words(tiny: Tiny, method: foveate.Method | None) -> None:
    inputs = tiny.batch([[3, (4, 4), 5]])
    inputs["input_ids"] = inputs["input_ids"].clone()
    inputs["input_ids"][0, int((inputs["input_ids"][0] == IMAGE).nonzero()[0])] = 5
    words = "Image features and image tokens do not match"
    with foveate.prune(tiny.model, method), pytest.raises(ValueError, match=words):
        tiny.model(**inputs)


def test_placeholder_ids_without_an_image_are_text_for_every_method(tiny: Tiny) -> None:
    text = {"input_ids": torch.tensor([[5, IMAGE, 7, IMAGE, 9]])}
    stock = generate(tiny.model, text, 3)[1]
    with foveate.prune(tiny.model, Random(0.5)) as trace:
        assert torch.equal(generate(tiny.model, text, 3)[1], stock)
    assert not trace.prefills
