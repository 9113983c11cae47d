"""A second turn that brings a new image, of every model type, given with the images of the whole conversation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate.families import adapt
from foveate.families.tables import TEXT_POSITIONS
from tests.engine.test_multiturn import union
from tests.families.reference import close, generate, masked, masked_logits, rows_of, with_positions
from tests.families.test_types import RECURRENT, TOLERANCE, model_of, names
from tests.reference import Drop

NEW: list[Any] = [3, 4, ("image", 2, 2), 5]
"""What a row goes on with: three tokens in place of the answer, then a second turn."""

COUNTED = {"hunyuan_vl"}
"""Types with an axis of positions that counts the images of a whole batch, so that rows are not alone."""

PREFIX = ("molmo2", "paligemma")
"""Types in which a prompt, or all its images, see each other in both directions, so that one pass over two turns is not
two passes."""


def conversation(entry: Any, rows: list[Any], tokens: Tensor) -> dict[str, Any]:
    """Both turns with the answer `tokens` between them, as a processor would make them of the whole conversation."""
    first, whole = entry.batch(rows), entry.batch([[*row, *NEW] for row in rows])
    cut, ids = first["input_ids"].shape[1], whole["input_ids"].clone()
    ids[:, :cut], ids[:, cut : cut + tokens.shape[1]] = first["input_ids"], tokens
    assert torch.equal(whole["attention_mask"][:, :cut], first["attention_mask"])
    return {**whole, "input_ids": ids, **entry.types(ids)}


@contextmanager
def continued_positions(model: Any, start: Tensor, past: int) -> Iterator[None]:
    """Within the block positions behind `past` go on by one from `start` `[axes, B]`."""

    def hook(module: Any, args: Any, kwargs: Any) -> Any:
        positions = kwargs["position_ids"].clone()
        axes = 1 if positions.dim() == 2 else positions.shape[0]
        positions[..., past:] = start[-axes:, ..., None] + torch.arange(positions.shape[-1] - past)
        return args, {**kwargs, "position_ids": positions}

    handle = adapt(model).parts.text.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def two_turns(name: str, rows: list[Any], method: Any) -> tuple[dict[str, Any], Tensor, Tensor, Any, Tensor, int]:
    """The whole conversation, tokens and logits of the second answer, the trace, the second turn's first positions
    `[axes, B]`, and how many tokens it found in the cache."""
    model, entry = model_of(name)
    seen: list[Any] = []
    with foveate.prune(model, method) as trace:
        tokens, _, cache = generate(model, entry.batch(rows), 3)
        whole, past = conversation(entry, rows, tokens), cache.get_seq_length()
        text = adapt(model).parts.text
        handle = text.register_forward_pre_hook(lambda m, a, k: seen.append(k.get("position_ids")), with_kwargs=True)
        more, logits, _ = generate(model, whole, 2, past_key_values=cache)
        handle.remove()
    first = seen[0][..., 0] if isinstance(seen[0], Tensor) else torch.zeros(1, len(rows))
    return whole, more, logits, trace, first, past


@pytest.mark.parametrize("name", names(exact=True))
@pytest.mark.parametrize("layers", [(2,), (0, 3)], ids=str)
def test_an_image_of_a_later_turn_is_pruned_too(name: str, layers: tuple[int, ...]) -> None:
    if name in PREFIX:
        pytest.skip("tested below")
    model, entry = model_of(name)
    rows = [list(row) for row in rows_of("image")][: 1 if name in COUNTED else 2]
    whole, more, logits, trace, start, past = two_turns(name, rows, Drop(layers, 0.4))
    seen = union(*(prefill.to_dict() for prefill in trace.prefills))
    pieces = 2 if name == "idefics2" else 1  # whose crops nothing tells apart from images
    assert [len(row["images"]) for row in seen["rows"]] == [2 * pieces, 3 * pieces][: len(rows)]
    if name not in TEXT_POSITIONS:
        assert close(logits, masked_logits(model, entry, whole, seen, more)) < TOLERANCE
        return
    with continued_positions(model, start, past):
        assert close(logits, masked_logits(model, entry, whole, seen, more)) < TOLERANCE


@pytest.mark.parametrize("name", names(exact=False))
def test_recurrent_states_go_on_with_an_image(name: str) -> None:
    model, _ = model_of(name)
    rows = [list(row) for row in rows_of("image")]
    whole, _, logits, _, start, past = two_turns(name, rows, None)
    positions = continued_positions(model, start, past) if name in TEXT_POSITIONS else nullcontext()
    with positions, torch.no_grad():
        wanted = model(**with_positions(model, whole), use_cache=False).logits[:, -1]
    assert close(logits[:, 0], wanted) < RECURRENT


@pytest.mark.families
@pytest.mark.parametrize("name", ["paligemma"])
def test_a_prefix_that_sees_itself_is_read_turn_by_turn(name: str) -> None:
    model, entry = model_of(name)
    rows = [list(rows_of("image")[0])]
    whole, more, logits, trace, _, _ = two_turns(name, rows, Drop((0, 3), 0.4))
    seen = union(*(prefill.to_dict() for prefill in trace.prefills))
    own = {key: len(value) for key, value in entry.batch([NEW]).items() if key not in ("input_ids", "attention_mask")}
    with masked(model, whole, seen):
        _, _, cache = generate(model, entry.batch(rows), 3)
        # what stock code can be given: the new image alone
        alone = {key: value[-own[key] :] if key in own else value for key, value in whole.items()}
        tokens, wanted, _ = generate(model, alone, 2, past_key_values=cache)
    assert torch.equal(tokens, more)
    assert close(logits, wanted) < TOLERANCE
