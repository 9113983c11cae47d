"""Rows that join after their own prefills, and leave: each decodes as in its own `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

import foveate
from foveate.core.method import Method
from foveate.engine.cache import FoveatedCache
from foveate.engine.joining import RowBatch
from foveate.engine.planning import column_bytes, plan_columns
from foveate.errors import CacheStateError
from foveate.methods import make, registry
from tests.reference import Drop
from tests.tiny import Tiny

ROWS: list[list[Any]] = [[3, (4, 4), 5], [2, (4, 6), 3, (2, 4), 4], [7], [11, (2, 4), 1], [1, (6, 4), 9]]
METHODS = [
    make("vitcop", keep=1 / 9),
    None,
    make("fastv", keep=0.5),
    make("divprune", keep=0.2, proportional=True),
    Drop((2,)),
]


def begin(tiny: Tiny, row: Sequence[Any], method: Method | None, seed: int = 0) -> tuple[RowBatch, int]:
    """One prompt, read alone, and its first token."""
    inputs = tiny.batch([row], seed)
    cache = FoveatedCache(config=tiny.model.config.get_text_config())
    with torch.inference_mode(), foveate.prune(tiny.model, method):
        out = tiny.model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return RowBatch(out.past_key_values, [inputs["input_ids"].shape[1]]), int(out.logits[0, -1].argmax())


def alone(tiny: Tiny, row: Sequence[Any], method: Method | None, new: int, seed: int = 0) -> list[int]:
    inputs = tiny.batch([row], seed)
    with torch.inference_mode(), foveate.prune(tiny.model, method):
        ids = tiny.model.generate(**inputs, max_new_tokens=new, do_sample=False)
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


def step(tiny: Tiny, batch: RowBatch, answers: list[list[int]]) -> None:
    with torch.inference_mode(), foveate.prune(tiny.model, None):
        logits = batch.decode(tiny.model, [answer[-1] for answer in answers])
    for answer, token in zip(answers, logits.argmax(-1).tolist(), strict=True):
        answer.append(token)


@pytest.mark.parametrize("shift", range(len(METHODS)))
def test_rows_join_and_leave(tiny: Tiny, shift: int) -> None:
    """Every prompt meets every method; one more row joins after each step, and each leaves after its own number."""
    methods = METHODS[shift:] + METHODS[:shift]
    limits = [3, 9, 5, 8, 4]
    batch, token = begin(tiny, ROWS[0], methods[0])
    answers, running, coming = [[token]], [0], list(range(1, len(ROWS)))
    while True:
        if coming:
            number = coming.pop(0)
            other, token = begin(tiny, ROWS[number], methods[number])
            answers.append([token])
            batch.join([other])
            running.append(number)
        step(tiny, batch, [answers[number] for number in running])
        done = [place for place, number in enumerate(running) if len(answers[number]) == limits[number]]
        running = [number for place, number in enumerate(running) if place not in done]
        if not running and not coming:
            break
        if done and running:
            batch.drop(done)
            assert batch.cache.get_seq_length() == max(batch.lengths)
        elif done:
            number = coming.pop(0)
            batch, token = begin(tiny, ROWS[number], methods[number])
            answers.append([token])
            running.append(number)
    wanted = [alone(tiny, *each) for each in zip(ROWS, methods, limits, strict=True)]
    assert answers == wanted


def test_many_join_at_once_in_any_order(tiny: Tiny) -> None:
    for order in ([0, 1, 2, 3, 4], [2, 4, 1, 0, 3]):
        begun = [begin(tiny, ROWS[number], METHODS[number]) for number in order]
        batch, *others = [one for one, _ in begun]
        answers = [[token] for _, token in begun]
        batch.join(others)
        for _ in range(4):
            step(tiny, batch, answers)
        assert answers == [alone(tiny, ROWS[number], METHODS[number], 5) for number in order]


def test_what_is_left_of_a_batch_is_as_small_as_a_row_alone(tiny: Tiny) -> None:
    small, token = begin(tiny, ROWS[3], METHODS[0])
    bytes_alone = small.cache.nbytes()
    others = [begin(tiny, ROWS[number], None)[0] for number in (1, 4)]
    small.join(others)
    assert small.cache.nbytes() > 3 * bytes_alone
    small.drop([1, 2])
    assert small.cache.nbytes() == bytes_alone
    assert small.cache.get_seq_length() == small.lengths[0]
    answer = [token]
    for _ in range(4):
        step(tiny, small, [answer])
    assert answer == alone(tiny, ROWS[3], METHODS[0], 5)


def test_unpruned_rows_become_a_stock_cache_again(tiny: Tiny) -> None:
    plain, token = begin(tiny, ROWS[1], None)
    plain.join([begin(tiny, ROWS[0], METHODS[0])[0]])
    assert plain.cache.is_pruned
    plain.drop([1])
    assert not plain.cache.is_pruned
    answer = [token]
    for _ in range(3):
        step(tiny, plain, [answer])
    assert answer == alone(tiny, ROWS[1], None, 4)


@pytest.mark.parametrize("leaving", [[0], [0, 3], [1, 3], [0, 1], [2], [0, 1, 2], [1, 2, 3]])
def test_padding_of_unpruned_rows_is_never_taken_for_tokens(tiny: Tiny, leaving: list[int]) -> None:
    """Unpruned rows of other lengths stand padded in layers that hold every column; then a pruned row joins."""
    rows, methods = [ROWS[1], ROWS[2], ROWS[0], ROWS[3]], [None, None, None, METHODS[0]]
    begun = [begin(tiny, row, method) for row, method in zip(rows, methods, strict=True)]
    batch, answers = begun[0][0], [[token] for _, token in begun]
    batch.join([begun[1][0], begun[2][0]])
    step(tiny, batch, answers[:3])
    batch.join([begun[3][0]])
    step(tiny, batch, answers)
    batch.drop(leaving)
    stay = [row for row in range(4) if row not in leaving]
    for _ in range(4):
        step(tiny, batch, [answers[row] for row in stay])
    for row in stay:
        assert answers[row] == alone(tiny, rows[row], methods[row], len(answers[row])), row
    assert max(batch.columns) <= max(batch.lengths)


def test_a_row_can_be_repeated(tiny: Tiny) -> None:
    batch, token = begin(tiny, ROWS[1], METHODS[0])
    batch.repeat(3)
    answers = [[token], [7], [11]]
    batch.join([begin(tiny, ROWS[0], None)[0]])
    answers.append([begin(tiny, ROWS[0], None)[1]])
    for _ in range(3):
        step(tiny, batch, answers)
    assert answers[0] == alone(tiny, ROWS[1], METHODS[0], 4)
    assert answers[3] == alone(tiny, ROWS[0], None, 4)
    assert answers[1] != answers[2]


def test_rows_that_decode_from_the_cache_have_a_batch_of_their_own(tiny: Tiny) -> None:
    published = [
        make("vitcop", keep=1 / 3, positions="contiguous"),
        make("visionzip", keep=0.3, positions="contiguous"),
    ]
    begun = [begin(tiny, row, method) for row, method in zip(ROWS, published, strict=False)]
    with pytest.raises(CacheStateError, match="share a batch"):
        begun[0][0].join([begin(tiny, ROWS[3], None)[0]])
    begun[0][0].join([begun[1][0]])
    answers = [[token] for _, token in begun]
    for _ in range(4):
        step(tiny, begun[0][0], answers)
    assert answers == [alone(tiny, row, method, 5) for row, method in zip(ROWS, published, strict=False)]


def test_the_last_row_cannot_be_dropped(tiny: Tiny) -> None:
    with pytest.raises(CacheStateError, match="let go"):
        begin(tiny, ROWS[0], None)[0].drop([0])


def methods_at(keep: float) -> list[Method]:
    found = []
    for name, kind in registry().items():
        if kind.__module__.startswith("foveate.methods") and name not in ("compose", "glimpse_prune", "pixel_prune"):
            found.append(make(name, keep=keep))
    return found


@pytest.mark.parametrize("row", [ROWS[0], ROWS[1], ROWS[2]])
def test_no_cache_is_larger_than_planned(tiny: Tiny, row: list[Any]) -> None:
    exact = 0
    for method in [None, *methods_at(0.75), *methods_at(0.9)]:
        planned = plan_columns(tiny.model, method, tiny.batch([row]))
        batch, _ = begin(tiny, row, method)
        assert all(held <= most for held, most in zip(batch.columns, planned, strict=True)), method
        exact += sum(planned) - sum(batch.columns) <= len(planned)
        heads = batch.cache.layers[0].keys
        assert column_bytes(tiny.model) == 2 * heads.shape[1] * heads.shape[3] * 4
    assert exact > 20  # most methods say beforehand what they keep
