"""Requests to a scheduler over a tiny model, with what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import foveate
from foveate.core.method import Method
from foveate.engine.planning import plan_columns
from foveate.methods import make
from foveate.serve.generation import Event, Failed, Generation, Piece
from foveate.serve.sampling import Sampling
from foveate.serve.scheduler import Scheduler
from tests.reference import Drop
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
