"""An answer as it comes: `generate` in a worker thread that belongs to the caller's context."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

T = TypeVar("T")


class _Left(StoppingCriteria):
    """Ends generation when nobody listens any more."""

    def __init__(self) -> None:
        self.now = False

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        return torch.full((input_ids.shape[0],), self.now, device=input_ids.device)  # type: ignore[return-value]


class Stream(Generic[T]):
    """Pieces of one answer's text; `answer` when they have all come.

    The worker starts with the first piece asked for, in a copy of the caller's context, because what prunes a model
    is a matter of the context. An error there is raised here. Leaving the loop early (`close`, an exception, the end
    of the generator's life) ends the model's work after the token it is at.

    Args:
        run: makes the answer; takes `streamer` and `stopping_criteria`.
        tokenizer: decodes.
        stops: strings of which no part may be shown.
    """

    def __init__(self, run: Callable[..., T], tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._run, self._stops = run, [stop for stop in stops if stop]
        self._streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._left = _Left()
        self._result: T | None = None
        self._whole = False
        self._error: BaseException | None = None
        self._pieces = self._read()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def close(self) -> None:
        """Stop now."""
        self._pieces.close()

    @property
    def answer(self) -> T:
        """The whole answer; reads the rest of the stream first."""
        for _ in self._pieces:
            pass
        if self._result is None or not self._whole:
            raise RuntimeError("the stream was left before its end: there is no whole answer")
        return self._result

    def _read(self) -> Any:
        worker = threading.Thread(target=contextvars.copy_context().run, args=(self._work,), daemon=True)
        worker.start()
        try:
            yield from self._shown()
            self._whole = True
        finally:
            self._left.now = True
            worker.join()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            self._result = self._run(streamer=self._streamer, stopping_criteria=StoppingCriteriaList([self._left]))
        except BaseException as error:
            self._error = error
            self._streamer.end()

    def _shown(self) -> Iterator[str]:
        """What comes, but for stop strings and for beginnings of them that may still become whole."""
        held = ""
        for piece in self._streamer:
            held += piece
            places = [place for stop in self._stops if (place := held.find(stop)) >= 0]
            if places:
                if text := held[: min(places)]:
                    yield text
                return
            ready = len(held) - max((_overlap(held, stop) for stop in self._stops), default=0)
            if ready:
                yield held[:ready]
            held = held[ready:]
        if held:
            yield held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
