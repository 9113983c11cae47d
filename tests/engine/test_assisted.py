"""Assisted and prompt-lookup decoding: the draft behind a prompt changes neither what is pruned nor the answer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import foveate
from foveate.methods import registry
from tests.test_matrix import configured
from tests.tiny import IMAGE, Tiny, make_tiny

ROWS = ([3, (4, 4), 5], [2, (4, 4), 3, (2, 4), 4])


def greedy(tiny: Tiny, inputs: dict[str, Any], method: foveate.Method, **options: Any) -> tuple[torch.Tensor, Any]:
    with foveate.prune(tiny.model, method) as trace:
        ids = tiny.model.generate(**inputs, max_new_tokens=8, do_sample=False, **options)
    assert len(trace.prefills) == 1
    return ids, trace.to_dict()["rows"]


def assistant(tiny: Tiny) -> Any:
    """A stock copy that always drafts three tokens."""
    model = copy.deepcopy(tiny.model)
    model.generation_config.num_assistant_tokens = 3
    model.generation_config.num_assistant_tokens_schedule = "constant"
    model.generation_config.assistant_confidence_threshold = 0.0
    return model


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("name", list(registry()))
def test_a_draft_changes_nothing(name: str, family: str) -> None:
    tiny = make_tiny(family)
    method, helper = configured(name, 0.5, tiny), assistant(tiny)
    for number, row in enumerate(ROWS):
        inputs = tiny.batch([row], seed=number)
        ids, kept = greedy(tiny, inputs, method)
        for options in ({"assistant_model": helper}, {"prompt_lookup_num_tokens": 1 + number}):
            found, again = greedy(tiny, inputs, method, **options)
            assert torch.equal(found, ids)
            assert again == kept


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_model_may_draft_for_itself(family: str) -> None:
    """The draft model is pruned too, as every call of the model is."""
    tiny = make_tiny(family)
    inputs, method = tiny.batch([ROWS[0]]), configured("fastv", 0.6, tiny)
    with foveate.prune(tiny.model, method):
        ids = tiny.model.generate(**inputs, max_new_tokens=8, do_sample=False)
        found = tiny.model.generate(**inputs, max_new_tokens=8, do_sample=False, assistant_model=tiny.model)
    assert torch.equal(found, ids)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_placeholder_in_a_draft_is_a_token(family: str) -> None:
    """Prompt lookup copies from the prompt, placeholders too; only given images make a prefill."""
    tiny = make_tiny(family)
    inputs = tiny.batch([[3, (4, 4), 5]])
    at = int((inputs["input_ids"][0] == IMAGE).nonzero()[0])
    tail = inputs["input_ids"][:, at - 1 : at]  # the token before the image again: its likely successor is the image
    for name, value in (("input_ids", tail), ("attention_mask", torch.ones_like(tail))):
        inputs[name] = torch.cat([inputs[name], value], 1)
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(tail).int()], 1)
    method = configured("vitcop", 0.5, tiny)
    ids, kept = greedy(tiny, inputs, method)
    found, again = greedy(tiny, inputs, method, prompt_lookup_num_tokens=3, max_matching_ngram_size=1)
    assert torch.equal(found, ids)
    assert again == kept


def test_logits_of_a_prompt_and_its_draft_are_given_back_together() -> None:
    tiny = make_tiny("llava")
    inputs = tiny.batch([ROWS[0]])
    with foveate.prune(tiny.model, configured("random", 0.5, tiny)), torch.no_grad():
        from transformers import DynamicCache

        whole = tiny.model(**inputs, logits_to_keep=4, past_key_values=DynamicCache(config=tiny.model.config))
        step = tiny.model(**inputs, logits_to_keep=1, past_key_values=DynamicCache(config=tiny.model.config))
    assert whole.logits.shape[1] == 4
    assert (whole.logits[:, -1] - step.logits[:, -1]).abs().max() < 1e-4
