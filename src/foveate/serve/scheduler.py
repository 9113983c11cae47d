"""Iteration-level batching: requests join the running batch after their own prefill and leave when they are done."""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections import deque
from typing import Any

import torch

from foveate.engine.attach import prune
from foveate.engine.cache import FoveatedCache
from foveate.engine.joining import RowBatch, can_join, renumbers
from foveate.engine.planning import column_bytes
from foveate.errors import FoveateError
from foveate.serve.generation import AnswerRow, Failed, Generation, report
from foveate.serve.problems import RequestError

log = logging.getLogger("foveate.serve")
PREFILLS = 4
"""At most so many prompts are read between two decoding steps, so that running answers do not stall for long."""


Key = bool | Generation
"""Of a batch: whether its rows renumber positions, or the only request that is in it."""


class Running:
    """A batch with the answers that its rows are."""

    def __init__(self, batch: RowBatch, rows: list[AnswerRow]) -> None:
        self.batch, self.rows = batch, rows

    def drop(self, done: list[int]) -> None:
        """Take rows out; a batch of which none is left must not be used again."""
        self.rows = [row for place, row in enumerate(self.rows) if place not in done]
        if done and self.rows:
            self.batch.drop(done)


class Scheduler:
    """Runs a model in a thread of its own. All model work happens there; `submit` may be called from anywhere.

    Prompts are read one by one, each under its own method, and all rows decode together. Rows whose decoding positions
    are counted in another way (`renumbers`) form a second batch; a request whose cache takes no padding (`can_join`) is
    one by itself.

    Args:
        model: stock model.
        tokenizer: copied, so that other threads may use theirs.
        rows: most answers at the same time.
        kv_bytes: most bytes of keys and values between steps, if all running answers become as long as they may.

    Attributes:
        running: answers that are being generated, as of the latest step; so are the others.
        held_bytes: of all keys and values.
        steps, tokens: decoding steps and tokens of answers since the start.
    """

    def __init__(self, model: Any, tokenizer: Any, rows: int = 16, kv_bytes: int | None = None) -> None:
        self.model, self.tokenizer = model, copy.deepcopy(tokenizer)
        self.rows, self.kv_bytes = rows, kv_bytes
        self._column = column_bytes(model)
        config = model.generation_config
        ends = config.eos_token_id
        self._ends = frozenset(() if ends is None else [ends] if isinstance(ends, int) else ends)
        self._waiting: deque[Generation] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._running: dict[Key, Running] = {}
        self._thread = threading.Thread(target=self._run, name="foveate-scheduler", daemon=True)
        self.steps = self.tokens = self.running = self.held_bytes = 0

    # -- from any thread ---------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are being worked on."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return len(self._waiting)

    def check(self, request: Generation) -> None:
        """Refuse what can never be run.

        Raises:
            RequestError: too many answers, or a cache beyond all memory.
        """
        if request.answers > self.rows:
            raise RequestError(f"this server generates at most {self.rows} answers at once", param="n")
        need = self._bytes([column + request.new_tokens for column in request.columns], request.answers)
        if self.kv_bytes is not None and need > self.kv_bytes:
            raise RequestError(
                f"The request may need {need:,} bytes of keys and values, this server has {self.kv_bytes:,}. Ask for "
                "fewer tokens (max_tokens), fewer answers (n) or a lower keep.",
                param="max_tokens",
                code="kv_memory",
            )

    def submit(self, request: Generation) -> None:
        """Put a request at the end of the queue.

        Raises:
            RequestError: it can never be run, or the server is closing.
        """
        self.check(request)
        with self._changed:
            if self._closing:
                raise RequestError("The server is shutting down.", 503, retry_after=5)
            self._waiting.append(request)
            self._changed.notify()

    def cancel(self, request: Generation) -> None:
        """Nobody waits for it any more: its rows leave before the next step."""
        request.cancelled = True
        with self._changed:
            self._changed.notify()

    def close(self, timeout: float | None = None) -> None:
        """Finish what runs and waits, then end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    # -- in the thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        # the open block holds the hooks in place, and decodes what was pruned; each prefill opens its own inside it
        with torch.inference_mode(), prune(self.model, None):
            while self._wait():
                try:
                    self._leave()
                    self._admit()
                    for key in list(self._running):
                        self._step(key)
                except Exception as error:  # a fault of ours ends what runs, not the server
                    rows = [row for running in self._running.values() for row in running.rows]
                    self._running.clear()
                    self._fail(list({row.request for row in rows}), error)
                self._publish()

    def _publish(self) -> None:
        """Numbers for other threads, which must not look into batches while these change."""
        running = list(self._running.values())
        self.held_bytes = sum(self._bytes(one.batch.columns, len(one.batch)) for one in running)
        self.running = sum(len(one.rows) for one in running)

    def _wait(self) -> bool:
        """Until there is something to do; False when everything is done and the end was asked for."""
        with self._changed:
            while not self._waiting and not self._running:
                if self._closing:
                    return False
                self._changed.wait()
        return True

    def _leave(self) -> None:
        """Rows that nobody waits for go at once, and waiting requests whose time is over are told so."""
        for key, running in list(self._running.items()):
            self._drop(key, [place for place, row in enumerate(running.rows) if row.request.cancelled])
        now = time.monotonic()
        with self._changed:
            late = [request for request in self._waiting if now > request.deadline and not request.cancelled]
            self._fail(late, RequestError("No place became free in time.", 503, retry_after=10))
            self._waiting = deque(request for request in self._waiting if not request.cancelled)

    def _drop(self, key: Key, done: list[int]) -> None:
        running = self._running[key]
        running.drop(done)
        if not running.rows:
            del self._running[key]

    def _admit(self) -> None:
        """Read prompts of waiting requests, oldest first, as far as there is room; then let all join at once."""
        joining: dict[Key, list[Running]] = {}
        for _ in range(PREFILLS):
            request = self._next([running for own in joining.values() for running in own])
            if request is None:
                break
            try:
                begun = self._prefill(request)
            except Exception as error:
                self._fail([request], error)
                continue
            if begun is not None:
                cache = begun.batch.cache  # one that nobody can join is a batch of its own
                joining.setdefault(renumbers(cache) if can_join(cache) else request, []).append(begun)
        for key, own in joining.items():
            self._join(key, own)

    def _next(self, joining: list[Running]) -> Generation | None:
        """The oldest waiting request, if there is room for it."""
        with self._changed:
            if self._waiting and self._fits(self._waiting[0], joining):
                return self._waiting.popleft()
        return None

    def _fits(self, request: Generation, joining: list[Running]) -> bool:
        every = [*self._running.values(), *joining]
        count = sum(len(running.rows) for running in every)
        if count + request.answers > self.rows:
            return False
        if self.kv_bytes is None or not every:
            return True
        # one batch of all is the largest that two can become
        layers = zip(request.columns, *(running.batch.columns for running in every), strict=True)
        longest = max(request.new_tokens, *(row.left for running in every for row in running.rows))
        return self._bytes([max(own) + longest for own in layers], count + request.answers) <= self.kv_bytes

    def _bytes(self, columns: list[int], rows: int) -> int:
        return sum(columns) * self._column * rows

    def _prefill(self, request: Generation) -> Running | None:
        """Read a prompt and choose the first token of each answer; None if all have ended with it."""
        started = time.monotonic()
        inputs = {name: value.to(self.model.device) for name, value in request.inputs.items()}
        # generate itself reads the prompt: families differ in what they prepare before their first pass
        with prune(self.model, request.method) as trace:
            out = self.model.generate(
                **inputs,
                max_new_tokens=1,
                do_sample=False,
                num_beams=1,
                output_logits=True,
                return_dict_in_generate=True,
            )
            prefill = trace.prefills[-1] if trace.prefills else None
        batch = RowBatch(FoveatedCache.adopt(out.past_key_values), [request.length])
        logits = out.logits[0][0]
        request.inputs = {"input_ids": request.inputs["input_ids"]}  # pixels are no longer needed
        rows = [AnswerRow(request, number, self.tokenizer) for number in range(request.answers)]
        request.tell(report(request, prefill, started, batch.cache.nbytes()))
        done = [place for place, row in enumerate(rows) if self._take(row, logits)]
        if len(done) == len(rows):
            return None
        batch.repeat(len(rows))
        running = Running(batch, rows)
        running.drop(done)
        return running

    def _join(self, key: Key, joining: list[Running]) -> None:
        every = [*([self._running[key]] if key in self._running else []), *joining]
        try:
            every[0].batch.join([running.batch for running in every[1:]])
        except Exception as error:
            self._running.pop(key, None)
            self._fail(list({row.request for running in every for row in running.rows}), error)
            return
        self._running[key] = Running(every[0].batch, [row for running in every for row in running.rows])

    def _step(self, key: Key) -> None:
        """One more token for every row of a batch."""
        running = self._running[key]
        try:
            logits = running.batch.decode(self.model, [row.last for row in running.rows])
            self.steps += 1
            self._drop(key, [place for place, row in enumerate(running.rows) if self._take(row, logits[place])])
        except Exception as error:
            self._running.pop(key, None)
            self._fail(list({row.request for row in running.rows}), error)

    def _take(self, row: AnswerRow, logits: torch.Tensor) -> bool:
        """One more token of an answer; whether it has ended. What goes wrong there is this request's alone."""
        self.tokens += 1
        try:
            return row.take(logits, self._ends)
        except Exception as error:
            self._fail([row.request], error)
            return True

    def _fail(self, requests: list[Generation], error: Exception) -> None:
        if not isinstance(error, FoveateError):
            log.error("A request failed.", exc_info=error)
        for request in requests:
            request.cancelled = True
            request.tell(Failed(error))
