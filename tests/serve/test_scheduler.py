"""Requests that join and leave: every answer is that of the request's own `generate`."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch

import foveate
from foveate.core.method import Method
from foveate.engine.planning import plan_columns
from foveate.methods import make
from foveate.serve.generation import Event, Failed, Generation, Piece, Report
from foveate.serve.problems import RequestError
from foveate.serve.sampling import Sampling
from foveate.serve.scheduler import Scheduler
from tests.reference import Drop
from tests.serve.live import wait_until
from tests.tiny import Tiny

METHODS: list[Method | None] = [
    make("vitcop", keep=1 / 9), None, make("fastv", keep=0.5), make("vitcop", keep=0.5), make("divprune", keep=0.2),
    make("vitcop", keep=1 / 3, positions="contiguous"), make("dart", keep=0.6), Drop((1, 3)),
    make("sparsevlm", keep=0.6),
]  # fmt: skip
SHAPES: list[list[Any]] = [
    [5, (4, 4), 7], [3, (4, 6), 2, (2, 4), 4], [9], [1, (6, 4), 12], [20, (2, 2), 3], [2, (4, 4), 1, (4, 4), 1],
]  # fmt: skip


class Numbers:
    """A tokenizer whose text is the ids themselves."""

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "".join(f"{token} " for token in tokens)


class Heard:
    """A request with what came back."""

    def __init__(self, tiny: Tiny, row: list[Any], method: Method | None, new: int, seed: int = 0, **more: Any) -> None:
        self.tiny, self.inputs, self.method, self.new = tiny, tiny.batch([row], seed), method, new
        self.events: list[Event] = []
        columns = plan_columns(tiny.model, method, self.inputs)
        sampling = more.pop("sampling", Sampling())
        self.request = Generation(
            self.inputs, method, sampling, new, self.events.append, columns=columns, **more
        )  # fmt: skip

    @property
    def ended(self) -> list[Piece]:
        return [event for event in self.events if isinstance(event, Piece) and event.finish]

    @property
    def failed(self) -> BaseException | None:
        return next((event.error for event in self.events if isinstance(event, Failed)), None)

    @property
    def done(self) -> bool:
        return self.failed is not None or len(self.ended) == self.request.answers

    def tokens(self, number: int = 0) -> list[int]:
        (piece,) = [piece for piece in self.ended if piece.number == number]
        return [int(word) for word in piece.whole.split()]

    def alone(self) -> list[int]:
        with torch.inference_mode(), foveate.prune(self.tiny.model, self.method):
            ids = self.tiny.model.generate(**self.inputs, max_new_tokens=self.new, do_sample=False)
        return ids[0, self.inputs["input_ids"].shape[1] :].tolist()


def run(tiny: Tiny, heard: Sequence[Heard], **limits: Any) -> Scheduler:
    """All requests at once, through to the end."""
    scheduler = Scheduler(tiny.model, Numbers(), **limits)
    for one in heard:
        scheduler.submit(one.request)
    scheduler.start()
    scheduler.close(120)
    assert not scheduler.alive
    assert scheduler.running == scheduler.held_bytes == scheduler.waiting == 0
    return scheduler


def mixed(tiny: Tiny, count: int) -> list[Heard]:
    return [
        Heard(tiny, SHAPES[i % len(SHAPES)], METHODS[(i + i // 6) % len(METHODS)], 1 + (5 * i) % 13, seed=i)
        for i in range(count)
    ]


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_every_answer_is_that_of_the_requests_own_generate(tiny: Tiny, rows: int) -> None:
    heard = mixed(tiny, 30)
    scheduler = run(tiny, heard, rows=rows)
    for one in heard:
        assert one.tokens() == one.alone(), one.method
    if rows > 1:
        assert scheduler.steps < sum(one.new for one in heard)  # they did share steps


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_coming_and_leaving(tiny: Tiny, seed: int) -> None:
    """Random prompts, methods, lengths, places and cancels."""
    chance = random.Random(seed)
    heard = [
        Heard(tiny, chance.choice(SHAPES), chance.choice(METHODS), chance.randrange(1, 12), chance.randrange(3))
        for _ in range(20)
    ]
    scheduler = Scheduler(tiny.model, Numbers(), rows=chance.randrange(2, 9))
    gone = {number for number in range(20) if chance.random() < 0.2}
    for number in gone:  # after its report, or after some pieces
        heard[number].request.notify = _leaving(heard[number], chance.randrange(1, 6))
    for one in heard:
        scheduler.submit(one.request)
    scheduler.start()
    scheduler.close(120)
    for number, one in enumerate(heard):
        if number not in gone:
            assert one.tokens() == one.alone(), (number, one.method)
    assert scheduler.running == scheduler.held_bytes == 0


def _leaving(one: Heard, after: int) -> Any:
    def notify(event: Event) -> None:
        one.events.append(event)
        one.request.cancelled = len(one.events) >= after

    return notify


def test_half_precision(tiny: Tiny) -> None:
    """Batched products round otherwise there, so answers need not be equal: all come to their end."""
    half = Tiny(tiny.family, copy.deepcopy(tiny.model).to(torch.bfloat16))
    heard = mixed(half, 12)
    for one in heard:
        one.request.inputs = {n: v.bfloat16() if v.is_floating_point() else v for n, v in one.inputs.items()}
    run(half, heard, rows=5)
    assert [len(one.tokens()) for one in heard] == [one.new for one in heard]


def test_requests_that_come_while_others_run(tiny: Tiny) -> None:
    heard = mixed(tiny, 24)
    scheduler, when = Scheduler(tiny.model, Numbers(), rows=5), random.Random(1)
    scheduler.start()
    for one in heard:
        time.sleep(when.random() * 0.02)
        scheduler.submit(one.request)
    scheduler.close(120)
    assert [one.tokens() for one in heard] == [one.alone() for one in heard]


def test_pieces_make_the_whole_and_the_report_comes_first(tiny: Tiny) -> None:
    (one,) = heard = [Heard(tiny, SHAPES[0], METHODS[0], 6)]
    run(tiny, heard)
    report, *pieces = one.events
    assert isinstance(report, Report)
    assert report.visual_tokens == 16
    assert 0 < report.kept_tokens < 4
    assert report.kv_bytes < report.kv_bytes_unpruned
    assert 0 <= report.queue_ms <= report.ttft_ms
    assert all(isinstance(piece, Piece) for piece in pieces)
    assert "".join(piece.text for piece in pieces) == pieces[-1].whole
    assert [piece.finish for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert pieces[-1].tokens == 6


def test_several_answers_of_one_prompt(tiny: Tiny) -> None:
    plain = Heard(tiny, SHAPES[1], METHODS[0], 5, answers=3)
    drawn = [Heard(tiny, SHAPES[1], METHODS[0], 8, answers=3, sampling=Sampling(1.5, 0.9, seed)) for seed in (7, 7, 8)]
    run(tiny, [plain, mixed(tiny, 1)[0], *drawn], rows=16)
    assert [plain.tokens(number) for number in range(3)] == [plain.alone()] * 3
    texts = [[one.tokens(number) for number in range(3)] for one in drawn]
    assert texts[0] == texts[1] != texts[2]  # a seed says everything
    assert texts[0][0] != texts[0][1]  # and each answer draws on its own


def test_a_seed_does_not_depend_on_neighbours(tiny: Tiny) -> None:
    alone = Heard(tiny, SHAPES[0], METHODS[0], 10, sampling=Sampling(1.0, 0.8, 3))
    crowd = Heard(tiny, SHAPES[0], METHODS[0], 10, sampling=Sampling(1.0, 0.8, 3))
    run(tiny, [alone])
    run(tiny, [*mixed(tiny, 6), crowd, *mixed(tiny, 3)])
    assert alone.tokens() == crowd.tokens()


def test_stop_strings_end_an_answer(tiny: Tiny) -> None:
    free = Heard(tiny, SHAPES[0], None, 10)
    run(tiny, [free])
    words = [str(token) for token in free.tokens()]
    stop = f"{words[3]} {words[4]}"
    one = Heard(tiny, SHAPES[0], None, 10, stops=(stop, "not there"))
    run(tiny, [one, *mixed(tiny, 3)])
    text = " ".join(words)
    assert one.ended[0].whole == text[: text.index(stop)].strip()
    assert one.ended[0].finish == "stop"
    assert "".join(piece.text for piece in one.events if isinstance(piece, Piece)) == one.ended[0].whole


def test_cancelled_rows_leave(tiny: Tiny) -> None:
    heard = mixed(tiny, 4)
    endless = [Heard(tiny, SHAPES[i], METHODS[i], 100_000) for i in range(3)]
    scheduler = Scheduler(tiny.model, Numbers(), rows=3)
    scheduler.start()
    for one in [*endless, *heard]:
        scheduler.submit(one.request)
    wait_until(lambda: scheduler.running == 3 and all(len(one.events) > 3 for one in endless))
    assert not any(one.events for one in heard)  # there is no row for them
    scheduler.cancel(heard[3].request)  # one that waits
    for one in endless:
        scheduler.cancel(one.request)
    wait_until(lambda: all(one.done for one in heard[:3]))
    assert [one.tokens() for one in heard[:3]] == [one.alone() for one in heard[:3]]
    scheduler.close(60)
    assert not heard[3].events
    assert scheduler.running == scheduler.held_bytes == 0


def test_time_limits_cut_answers_and_end_waiting(tiny: Tiny) -> None:
    now = time.monotonic()
    running = Heard(tiny, SHAPES[0], None, 100_000, deadline=now + 0.5)
    waiting = Heard(tiny, SHAPES[0], None, 5, deadline=now + 0.1)
    run(tiny, [running, waiting], rows=1)
    assert running.ended[0].late
    assert running.ended[0].finish == "length"
    assert isinstance(waiting.failed, RequestError)
    assert waiting.failed.status == 503


def test_memory_bounds_what_runs_together(tiny: Tiny) -> None:
    heard = mixed(tiny, 12)
    free = run(tiny, mixed(tiny, 12))
    largest = max(free._bytes([column + one.new for column in one.request.columns], 1) for one in heard)
    scheduler = Scheduler(tiny.model, Numbers(), rows=16, kv_bytes=2 * largest)
    seen = []
    for one in heard:
        one.request.notify = _also(one.request.notify, lambda: seen.append(scheduler.held_bytes))
        scheduler.submit(one.request)
    scheduler.start()
    scheduler.close(120)
    assert [one.tokens() for one in heard] == [one.alone() for one in heard]
    assert 0 < max(seen) <= 2 * largest
    assert scheduler.steps > free.steps


def _also(notify: Any, more: Any) -> Any:
    def both(event: Event) -> None:
        notify(event)
        more()

    return both


def test_what_can_never_run_is_refused(tiny: Tiny) -> None:
    scheduler = Scheduler(tiny.model, Numbers(), rows=2, kv_bytes=100_000)
    with pytest.raises(RequestError, match="bytes of keys and values"):
        scheduler.submit(Heard(tiny, SHAPES[0], None, 500).request)
    with pytest.raises(RequestError, match="at most 2 answers"):
        scheduler.submit(Heard(tiny, SHAPES[0], None, 1, answers=3).request)
    scheduler.start()
    scheduler.close(10)
    with pytest.raises(RequestError, match="shutting down"):
        scheduler.submit(Heard(tiny, SHAPES[2], None, 1).request)


def test_a_fault_of_one_request_is_its_own(tiny: Tiny) -> None:
    heard = mixed(tiny, 5)
    broken = Heard(tiny, SHAPES[0], None, 5)
    broken.request.inputs = dict(broken.inputs) | {"pixel_values": broken.inputs["pixel_values"][..., :3]}
    deaf = Heard(tiny, SHAPES[0], None, 50)
    deaf.request.notify = _raise
    run(tiny, [heard[0], broken, heard[1], deaf, *heard[2:]], rows=8)
    assert broken.failed is not None
    assert [one.tokens() for one in heard] == [one.alone() for one in heard]


def test_a_fault_of_one_row_is_its_own(tiny: Tiny) -> None:
    heard = mixed(tiny, 5)
    broken = Heard(tiny, SHAPES[0], None, 50)
    scheduler = Scheduler(tiny.model, Numbers(), rows=8)

    def break_it(event: Event) -> None:
        broken.events.append(event)
        for running in scheduler._running.values():
            for row in running.rows:
                if row.request is broken.request:
                    row.sampler = None  # type: ignore[assignment]

    broken.request.notify = break_it
    for one in [*heard[:2], broken, *heard[2:]]:
        scheduler.submit(one.request)
    scheduler.start()
    scheduler.close(60)
    assert isinstance(broken.failed, AttributeError)
    assert [one.tokens() for one in heard] == [one.alone() for one in heard]


def test_a_request_behind_another_is_told_in_time_that_its_time_is_over(tiny: Tiny) -> None:
    now = time.monotonic()
    running = Heard(tiny, SHAPES[0], None, 100_000, deadline=now + 2)
    first = Heard(tiny, SHAPES[0], None, 5)
    behind = Heard(tiny, SHAPES[0], None, 5, deadline=now + 0.1)
    when: list[float] = []
    behind.request.notify = _also(behind.request.notify, lambda: when.append(time.monotonic()))
    run(tiny, [running, first, behind], rows=1)
    assert first.tokens() == first.alone()
    assert isinstance(behind.failed, RequestError)
    assert not first.events or when[0] < now + 2


def _raise(event: Event) -> None:
    raise RuntimeError("the loop is closed")
