"""HTTP as such: who may ask, how much is read, and clients that leave or take their time."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from foveate.serve.options import ServeOptions, is_loopback
from foveate.serve.problems import RequestError

T = TypeVar("T")


def check_host(request: Request, options: ServeOptions) -> None:
    """A server on loopback answers to its own names only: a page in a browser may let any name point here.

    Raises:
        RequestError: another name.
    """
    if not is_loopback(options.host):
        return
    given = request.headers.get("host", "")
    name = given.rpartition(":")[0] if given.rpartition(":")[2].isdigit() else given
    if name != options.host and not is_loopback(name):
        raise RequestError("This server answers to the names of its own machine only.", 403, code="host")


def check_key(request: Request, options: ServeOptions) -> None:
    """Compare the bearer's key, in constant time.

    Raises:
        RequestError: none, or another one.
    """
    if not options.keys:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    own = given.strip().encode("utf-8", "surrogateescape")
    known = [hmac.compare_digest(own, key.encode()) for key in options.keys]
    if scheme.lower() != "bearer" or not any(known):
        raise RequestError("Send a valid key: Authorization: Bearer KEY.", 401, code="invalid_api_key")


async def read_body(request: Request, options: ServeOptions) -> bytes:
    """The whole body, if it is JSON, comes in time and is not too large.

    Raises:
        RequestError: see above.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # also keeps other sites' forms out, which need no permission of a browser
        raise RequestError("Send Content-Type: application/json.", 415)
    too_large = RequestError(f"The body is larger than {options.body_megabytes:g} MB.", 413, code="body_too_large")
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > options.most_body:
        raise too_large
    found = bytearray()
    try:
        async with asyncio.timeout(options.patience):
            async for piece in request.stream():
                found += piece
                if len(found) > options.most_body:
                    raise too_large
    except TimeoutError as error:
        raise RequestError("The body did not arrive in time.", 408) from error
    return bytes(found)


async def unless_gone(request: Request, work: Coroutine[None, None, T]) -> T:
    """The result of `work`, which is cancelled if the client leaves before it is there. The body must be read already.

    Raises:
        ClientDisconnect: it has left.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events to one client. Ends when the client leaves, or takes nothing for `patience` seconds.

    Args:
        events: closed at the end, whatever the end is.
        end: called then, also if the client left before the first event was asked for.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], patience: float, end: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events, self._patience, self._end = events, patience, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def timely(message: Message) -> None:
            async with asyncio.timeout(self._patience):
                await send(message)

        sending = asyncio.ensure_future(self.stream_response(timely))
        leaving = asyncio.ensure_future(self.listen_for_disconnect(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            await self._events.aclose()
            self._end()
