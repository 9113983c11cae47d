"""One model behind the endpoints: places, requests under way, and what is counted."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

from foveate.inference.answer import Asker
from foveate.serve.choices import MethodChoices
from foveate.serve.generation import Event, Failed, Generation, Piece, Report
from foveate.serve.metrics import Metrics
from foveate.serve.options import ServeOptions
from foveate.serve.prepare import Preparation
from foveate.serve.problems import RequestError, of
from foveate.serve.replies import Reply, broken
from foveate.serve.scheduler import Scheduler


class Service:
    """A model, its scheduler, and the requests that are inside.

    Args:
        asker: model and processor.
        choices: which pruning requests may choose.
        options: of the server.

    Attributes:
        method: the server's own.
        inside: requests that have a place.

    Raises:
        ConfigurationError: the checkpoint asks for a generation that the server does not offer.
    """

    def __init__(self, asker: Asker, choices: MethodChoices, options: ServeOptions) -> None:
        self.options, self.method = options, choices.default
        self.scheduler = Scheduler(asker.model, asker.processor.tokenizer, options.rows, options.kv_bytes)
        self.preparation = Preparation(asker, choices, options)
        self.inside = 0
        self.metrics = Metrics(self.scheduler, lambda: self.inside)
        self._typical = 1.0  # seconds of a request, smoothed

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """One of the places that running and waiting requests share.

        Raises:
            RequestError: all are taken.
        """
        if self.inside >= self.options.rows + self.options.queue:
            wait = max(1, round(self._typical * self.inside / self.options.rows))
            raise RequestError("Too many requests wait already.", 429, code="queue_full", retry_after=min(wait, 60))
        self.inside += 1
        started = time.monotonic()
        try:
            yield
        finally:
            self.inside -= 1
            self._typical += 0.1 * (time.monotonic() - started - self._typical)

    async def begin(self, body: bytes, arrived: float) -> Ongoing:
        """Prepare a request, put it into the queue, and wait until its prompt was read.

        Raises:
            RequestError, FoveateError: it is refused.
        """
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()
        try:
            async with asyncio.timeout(self.options.seconds):
                chat = await self.preparation.parse(body)
                request = await self.preparation.prepare(
                    chat, arrived, lambda event: _put(loop, events, event)
                )  # fmt: skip
        except TimeoutError as error:
            raise RequestError("The request was not prepared in time.", 503, retry_after=10) from error
        reply = Reply(self.options.name, request, bool(chat.stream_options and chat.stream_options.include_usage))
        ongoing = Ongoing(self, request, events, reply, chat.stream)
        self.scheduler.submit(request)
        try:
            await ongoing.first()
        except BaseException:
            ongoing.leave()
            raise
        return ongoing


class Ongoing:
    """A request that the scheduler works on. Whoever has it calls `leave` at the end.

    Args:
        events: of the scheduler.
        reply: filled as they come.
        stream: whether the client wants pieces.
    """

    def __init__(
        self, service: Service, request: Generation, events: asyncio.Queue[Event], reply: Reply, stream: bool
    ) -> None:
        self.service, self.request, self.reply, self.stream = service, request, reply, stream
        self._events, self._failed = events, False

    async def first(self) -> None:
        """Until the prompt was read."""
        found = await self._next()
        assert isinstance(found, Report)
        self.reply.report = found
        self.service.metrics.begin(found, self.request.length)

    async def pieces(self) -> AsyncIterator[Piece]:
        """Text as it comes, until every answer has ended."""
        while not self.reply.is_whole:
            piece = await self._next()
            assert isinstance(piece, Piece)
            self.reply.note(piece)
            yield piece

    async def whole(self) -> dict[str, Any]:
        """The reply in one piece."""
        async for _ in self.pieces():
            pass
        return self.reply.body()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The reply as server-sent events. What fails on the way is the last of them."""
        try:
            yield self.reply.opening()
            async for piece in self.pieces():
                yield self.reply.chunk(piece)
            yield self.reply.closing()
        except Exception as error:
            yield broken(of(error))

    def leave(self) -> None:
        """Count it; cancel what still runs."""
        metrics = self.service.metrics
        metrics.tokens.inc(self.reply.usage["completion_tokens"])
        metrics.whole.observe(time.monotonic() - self.request.arrived)
        if not (self.reply.is_whole or self._failed):
            self.service.scheduler.cancel(self.request)
            metrics.cancelled.inc()

    async def _next(self) -> Report | Piece:
        event = await self._events.get()
        if isinstance(event, Failed):
            self._failed = True
            raise of(event.error) from event.error
        return event


def _put(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event], event: Event) -> None:
    loop.call_soon_threadsafe(events.put_nowait, event)
