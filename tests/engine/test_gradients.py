"""Pruned passes for training: full-length outputs, repeated choices, gradient checkpointing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import foveate
from foveate.engine.replay import Replay, row_choices
from foveate.errors import ConfigurationError
from foveate.families import adapt
from foveate.methods import find, make
from tests.reference import Drop
from tests.tiny import LAYERS, Tiny

ROWS = [[3, (4, 6), 5, (2, 4), 4], [9], [2, (6, 4), 6]]
METHODS = [
    Drop((0, 2, 4)),
    Drop((0, 2, 4), proportional=True),
    Drop((3,), as_mask=True, compact=True, proportional=True),
    Drop((2, 4), compact=True, proportional=True),
    Drop((LAYERS,), compact=True),
]


def log_probabilities(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)


def with_completion(tiny: Tiny, inputs: dict[str, Tensor], completion: Tensor) -> dict[str, Tensor]:
    """The prompt continued by a completion, as log-probabilities are computed for it."""
    grown = dict(inputs)
    grown["input_ids"] = torch.cat([inputs["input_ids"], completion], 1)
    grown["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(completion)], 1)
    if "mm_token_type_ids" in inputs:
        grown["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, completion.shape[1]))
    return grown


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_full_length_puts_every_token_back_where_it_stood(tiny: Tiny, method: Drop) -> None:
    inputs = tiny.batch(ROWS)
    with torch.no_grad():
        with foveate.prune(tiny.model, method):
            short = tiny.model(**inputs, use_cache=False).logits
        with foveate.prune(tiny.model, method, full_length=True) as trace:
            full = tiny.model(**inputs, use_cache=False, labels=inputs["input_ids"])
    assert full.logits.shape[1] == inputs["input_ids"].shape[1] > short.shape[1]
    assert full.loss.isfinite()
    valid = inputs["attention_mask"].bool()
    for row, facts in enumerate(trace.to_dict()["rows"]):
        visual = {column for image in facts["images"] for column in image["columns"]}
        kept = set(facts["kept"])
        columns = [c for c in valid[row].nonzero().flatten().tolist() if c not in visual or c in kept]
        torch.testing.assert_close(full.logits[row, columns], short[row, short.shape[1] - len(columns) :])
        gone = sorted(visual - kept)
        assert (full.logits[row, gone] == 0).all()


@pytest.mark.parametrize("method", [*METHODS, "vitcop", "glimpse_prune"], ids=str)
def test_log_probabilities_of_a_completion_equal_those_of_pruned_generation(tiny: Tiny, method: Any) -> None:
    if isinstance(method, str):
        cls = find(method)
        method = cls.example(0.4, tiny.model) if hasattr(cls, "example") else make(method, keep=0.4)
    inputs = tiny.batch(ROWS)
    # a sampled placeholder would stand for an image that nobody gave: training never samples one either
    placeholders = sorted(adapt(tiny.model).token_ids.values())
    with foveate.prune(tiny.model, method) as trace:
        sampled = tiny.model.generate(
            **inputs,
            max_new_tokens=6,
            do_sample=True,
            suppress_tokens=placeholders,
            return_dict_in_generate=True,
            output_logits=True,
        )
    completion = sampled.sequences[:, inputs["input_ids"].shape[1] :]
    expected = log_probabilities(torch.stack(sampled.logits, 1).float(), completion)
    choices = row_choices(trace.last, method, adapt(tiny.model).info)
    grown = with_completion(tiny, inputs, completion)
    with torch.no_grad(), foveate.prune(tiny.model, Replay(choices), full_length=True) as again:
        logits = tiny.model(**grown, use_cache=False).logits
    actual = log_probabilities(logits[:, -completion.shape[1] - 1 : -1].float(), completion)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
    assert [row["kept"] for row in again.to_dict()["rows"]] == [row["kept"] for row in trace.to_dict()["rows"]]


def test_a_choice_that_sees_the_completion_would_differ(tiny: Tiny) -> None:
    """Why choices are repeated: a method that reads the last token chooses otherwise once the prompt has grown."""
    method = make("fastv", keep=0.3)
    inputs = tiny.batch([[3, (4, 6), 5]])
    grown = with_completion(tiny, inputs, torch.tensor([[40, 41, 42, 43]]))
    kept = []
    for given in (inputs, grown):
        with torch.no_grad(), foveate.prune(tiny.model, method, full_length=True) as trace:
            tiny.model(**given, use_cache=False)
        kept.append(trace.to_dict()["rows"][0]["kept"])
    assert kept[0] != kept[1]


def test_replay_in_another_order_of_rows(tiny: Tiny) -> None:
    inputs = tiny.batch(ROWS)
    method = METHODS[0]
    with torch.no_grad(), foveate.prune(tiny.model, method, full_length=True) as trace:
        whole = tiny.model(**inputs, use_cache=False).logits
    choices = row_choices(trace.last, method, adapt(tiny.model).info)
    one = tiny.batch([ROWS[2]])
    with torch.no_grad(), foveate.prune(tiny.model, Replay([choices[2]]), full_length=True):
        alone = tiny.model(**one, use_cache=False).logits
    torch.testing.assert_close(alone[0], whole[2, -alone.shape[1] :], atol=2e-5, rtol=1e-4)
    with pytest.raises(ConfigurationError, match="row 2"), foveate.prune(tiny.model, Replay([choices[0]])):
        tiny.model(**inputs, use_cache=False)
    with pytest.raises(ConfigurationError, match="at least one"):
        Replay([])


@contextmanager
def checkpointed_calls(model: Any, reentrant: bool) -> Iterator[None]:
    """Layers that checkpoint `__call__`, hooks included, as older transformers do."""
    layers = adapt(model).parts.layers
    cls = type(layers[0])
    stock = cls.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(partial(stock, self, **kwargs), *args, use_reentrant=reentrant)

    cls.__call__ = call
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = lambda function, *args: function(*args)
    try:
        yield
    finally:
        cls.__call__ = stock
        for layer in layers:
            layer.gradient_checkpointing = False


@contextmanager
def stock_checkpointing(model: Any, reentrant: bool) -> Iterator[None]:
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()


def gradients(tiny: Tiny, method: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    tiny.model.zero_grad()
    with foveate.prune(tiny.model, method, full_length=True):
        tiny.model(**inputs, use_cache=False, labels=inputs["input_ids"]).loss.backward()
    return {name: p.grad.clone() for name, p in tiny.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("how", [stock_checkpointing, checkpointed_calls])
@pytest.mark.parametrize("name", ["drop", "glimpse_prune"])
def test_gradients_do_not_change_under_gradient_checkpointing(tiny: Tiny, name: str, how: Any, reentrant: bool) -> None:
    method = Drop((0, 2, 4)) if name == "drop" else find(name).example(0.4, tiny.model)
    inputs = tiny.batch(ROWS)
    tiny.model.train()
    try:
        plain = gradients(tiny, method, inputs)
        with how(tiny.model, reentrant):
            again = gradients(tiny, method, inputs)
    finally:
        tiny.model.eval()
        tiny.model.zero_grad(set_to_none=True)
    own = {name for name in plain if "language_model.layers" in name}
    assert own, "nothing was trained"
    assert own <= again.keys()
    for key in own:
        torch.testing.assert_close(again[key], plain[key], atol=1e-6, rtol=1e-4)


def test_flash_attention_cannot_hide_what_was_compacted(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, method = tiny.batch([[3, (4, 4), 4]]), Drop((3,), compact=True)
    with torch.no_grad(), foveate.prune(tiny.model, method) as trace:
        tiny.model(**inputs)
    choices = row_choices(trace.last, method, adapt(tiny.model).info)
    monkeypatch.setattr(adapt(tiny.model).parts.text.config, "_attn_implementation", "flash_attention_2")
    with (
        torch.no_grad(),
        pytest.raises(ConfigurationError, match="attn_implementation='sdpa'"),
        foveate.prune(tiny.model, Replay(choices), full_length=True),
    ):
        tiny.model(**inputs, use_cache=False)
