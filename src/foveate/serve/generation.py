"""One request inside the scheduler: what it asks, and what comes back while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from foveate.core.method import Method
from foveate.inference.schemas import JsonSchema
from foveate.serve.detokenizing import Detokenizer
from foveate.serve.sampling import Sampler, Sampling
from foveate.trace.records import PrefillTrace

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Report:
    """What reading a prompt took, and what was kept of it.

    Attributes:
        method: as text; `none` for no pruning.
        visual_tokens: of the unpruned prompt.
        kept_tokens: alive on average over the decoder layers.
        kv_bytes, kv_bytes_unpruned: keys and values right after the prefill, and with nothing dropped.
        ttft_ms: from the request's arrival to its first token.
        queue_ms: of that, waiting for a place.
        prefill_ms, vision_ms, select_ms: reading the prompt, the vision tower, choosing tokens (a part of the prefill).
    """

    method: str
    visual_tokens: int
    kept_tokens: float
    kv_bytes: int
    kv_bytes_unpruned: int
    ttft_ms: float
    queue_ms: float
    prefill_ms: float
    vision_ms: float
    select_ms: float


@dataclass(frozen=True)
class Piece:
    """More text of one answer, or its end.

    Attributes:
        number: of the answer within its request.
        finish: why the answer ends; None while it goes on.
        tokens: generated so far.
        whole: the whole answer, once it has ended.
        late: whether it was cut because time ran out.
    """

    number: int
    text: str
    finish: Finish | None = None
    tokens: int = 0
    whole: str = ""
    late: bool = False


@dataclass(frozen=True)
class Failed:
    """The request ends without an answer."""

    error: BaseException


Event = Report | Piece | Failed


@dataclass(eq=False)
class Generation:
    """One request.

    Attributes:
        inputs: model inputs of one row.
        notify: called in the scheduler's thread with every event, in order; must not block.
        arrived: when the request came, by `time.monotonic`.
        deadline: when its answers are cut.
        schema: that the answers follow.
        columns: at most held by every layer after the prefill.
        cancelled: set by anybody at any time: nobody waits for the answer.
    """

    inputs: Mapping[str, Tensor]
    method: Method | None
    sampling: Sampling
    new_tokens: int
    notify: Callable[[Event], None]
    stops: tuple[str, ...] = ()
    schema: JsonSchema | None = None
    answers: int = 1
    arrived: float = field(default_factory=time.monotonic)
    deadline: float = float("inf")
    columns: list[int] = field(default_factory=list)
    cancelled: bool = False

    def tell(self, event: Event) -> None:
        """Hand an event on. Whoever cannot take it is not waiting any more, and must not disturb the other rows."""
        try:
            self.notify(event)
        except Exception:
            self.cancelled = True

    @property
    def length(self) -> int:
        """Tokens of the unpruned prompt."""
        return int(self.inputs["input_ids"].shape[1])


class AnswerRow:
    """One answer of a request while it is generated."""

    def __init__(self, request: Generation, number: int, tokenizer: Any) -> None:
        self.request, self.number = request, number
        self.sampler = Sampler(request.sampling, number, request.inputs["input_ids"][0], request.schema)
        self.detokenizer = Detokenizer(tokenizer, request.stops)

    @property
    def left(self) -> int:
        """Tokens that may still come."""
        return self.request.new_tokens - len(self.detokenizer.tokens)

    @property
    def last(self) -> int:
        return self.detokenizer.tokens[-1]

    def take(self, logits: Tensor, ends: frozenset[int]) -> bool:
        """One more token; returns whether the answer has ended."""
        token = self.sampler.choose(logits)
        text = self.detokenizer.add(token)
        if token in ends or self.detokenizer.stopped:
            self._say(text, "stop")
        elif self.left <= 0:
            self._say(text, "length")
        elif time.monotonic() > self.request.deadline:
            self._say(text, "length", late=True)
        else:
            if text:
                self.request.tell(Piece(self.number, text, tokens=len(self.detokenizer.tokens)))
            return False
        return True

    def _say(self, text: str, finish: Finish, late: bool = False) -> None:
        text += self.detokenizer.finish()
        tokens = len(self.detokenizer.tokens)
        self.request.tell(Piece(self.number, text, finish, tokens, self.detokenizer.text, late))


def report(request: Generation, trace: PrefillTrace | None, started: float, kv_bytes: int) -> Report:
    """What a prefill says of itself.

    Args:
        trace: None for a prompt without images, which leaves none.
        started: when the prefill began, by `time.monotonic`.
        kv_bytes: of the row's cache.
    """
    now = time.monotonic()
    alive = trace.alive_per_layer(0) if trace is not None else []
    return Report(
        method=str(request.method) if request.method is not None else "none",
        visual_tokens=trace.visual_tokens if trace is not None else 0,
        kept_tokens=round(sum(alive) / max(1, len(alive)), 2),
        kv_bytes=kv_bytes,
        kv_bytes_unpruned=trace.kv_bytes_unpruned if trace is not None else kv_bytes,
        ttft_ms=round(1000 * (now - request.arrived), 2),
        queue_ms=round(1000 * (started - request.arrived), 2),
        prefill_ms=round(1000 * (now - started), 2),
        vision_ms=round(trace.vision.ms, 2) if trace is not None else 0.0,
        select_ms=round(trace.selecting.ms, 2) if trace is not None else 0.0,
    )
