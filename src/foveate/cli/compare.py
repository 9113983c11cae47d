"""One question under several methods: answers, and what a user waits for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.table import Table

from foveate.cli.show import add_row, make_table, plain

if TYPE_CHECKING:
    from foveate.core.method import Method
    from foveate.inference.answer import Answer, Asker
    from foveate.trace.records import PrefillTrace

ROUNDS = 3


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        answers: to the same question, in rounds; all keep the same tokens.
        totals: milliseconds that each took from prepared inputs to its last token.
    """

    method: Method | None
    answers: Sequence[Answer]
    totals: Sequence[float]

    @property
    def name(self) -> str:
        return "unpruned" if self.method is None else self.method.name

    @property
    def answer(self) -> Answer:
        return self.answers[-1]

    @property
    def first_tokens(self) -> list[float]:
        """Milliseconds to the first token, of each answer."""
        return [answer.prefill.first_token_ms for answer in self.answers]

    @property
    def prefill(self) -> PrefillTrace:
        """The reading of median time to first token."""
        readings = sorted((answer.prefill for answer in self.answers), key=lambda reading: reading.first_token_ms)
        return readings[len(readings) // 2]


def measure(
    asker: Asker, prompt: dict[str, Any], methods: Sequence[Method | None], rounds: int = ROUNDS
) -> list[Column]:
    """Answers under every method, in turns after one reading each to warm up; with `rounds=1` as it comes."""
    if rounds > 1:
        for method in methods:
            asker.answer(prompt, method, max_new_tokens=1)
    answers: list[list[Answer]] = [[] for _ in methods]
    totals: list[list[float]] = [[] for _ in methods]
    for _ in range(rounds):
        for number, method in enumerate(methods):
            begun = time.perf_counter()
            answers[number].append(asker.answer(prompt, method)[0])
            totals[number].append(1000 * (time.perf_counter() - begun))
    return [Column(*column) for column in zip(methods, answers, totals, strict=True)]


def table(runs: Sequence[Column], with_answer: bool = True) -> Table:
    """One column per run: the answer and the waiting first, then what was kept, then where the time went."""
    from foveate.trace.text import chain

    rows = make_table(["", *(run.name for run in runs)], left=True, show_header=len(runs) > 1, box=None, pad_edge=False)
    last = [run.prefill for run in runs]
    if with_answer:
        add_row(rows, "answer", *(plain(run.answer.text, "bold") for run in runs))
    add_row(rows, "time to first token ms", *_times(runs, lambda run: run.first_tokens))
    add_row(rows, "whole answer ms", *_times(runs, lambda run: run.totals))
    add_row(rows, "KV cache bytes", *(f"{trace.kv_bytes:,} ({_share(trace)})" for trace in last))
    add_row(rows, "visual tokens", *(chain(trace) for trace in last))
    add_row(rows, "average per layer", *(f"{trace.keep_ratio:.1%}" for trace in last))
    add_row(rows, "vision tower ms", *(f"{trace.vision.ms:.1f}" for trace in last))
    add_row(rows, "of it reading ms", *(f"{trace.tapping.ms:.1f}" for trace in last))
    add_row(rows, "LLM prefill ms", *(f"{trace.prefill.ms:.1f}" for trace in last))
    add_row(rows, "of it selecting ms", *(f"{trace.selecting.ms:.1f}" for trace in last))
    return rows


def _times(runs: Sequence[Column], read: Callable[[Column], Sequence[float]]) -> list[str]:
    return [f"{median(read(run)):.1f}{speedup(read(runs[0]), read(run)) if run is not runs[0] else ''}" for run in runs]


def speedup(stock: Sequence[float], own: Sequence[float]) -> str:
    """How much faster than the first run; no number where the measurements overlap: they must lie apart altogether."""
    if len(own) < 2 or max(min(stock), min(own)) <= min(max(stock), max(own)):
        return " (about equal)"
    return f" ({median(stock) / median(own):.2f}x)"


def _share(trace: PrefillTrace) -> str:
    return f"{trace.kv_bytes / trace.kv_bytes_unpruned:.0%} of unpruned" if trace.kv_bytes_unpruned else "no cache"
