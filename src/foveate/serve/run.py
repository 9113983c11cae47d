"""Start the server, and end it without losing a request that it has accepted."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from foveate.serve.app import build
from foveate.serve.options import ServeOptions
from foveate.serve.service import Service

LINGER = 0.5
"""Seconds at the end in which requests are taken that are on their way already."""


class LingeringServer(uvicorn.Server):
    """Ends without resetting connections that hold a request which it has not read yet.

    Uvicorn alone closes what waits to be accepted, and connections whose request has not been read: on a busy machine
    many at once, and their clients cannot know whether they were heard.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.sleep(0.05)  # the loop accepts all that wait
        for listener in self.servers:
            listener.close()
        await asyncio.sleep(LINGER)
        await super().shutdown(sockets)


def server(service: Service, log_level: str = "info") -> uvicorn.Server:
    """A uvicorn server of the service. On SIGTERM and SIGINT it takes no new connections, finishes the requests that it
    has, and ends; what is longer than a request may last is cut."""
    options = service.options
    config = uvicorn.Config(
        build(service),
        host=options.host,
        port=options.port,
        timeout_graceful_shutdown=int(options.longest),
        timeout_keep_alive=5,
        server_header=False,
        log_level=log_level,
        ws="none",
        lifespan="on",
    )
    return LingeringServer(config)


@contextmanager
def running(service: Service, seconds: float = 60) -> Iterator[str]:
    """The address of a server that runs in a thread of this process, on a port of its options (0: any that is free).

    Args:
        seconds: to start, and at the end to finish what runs.

    Raises:
        RuntimeError: it did not start or end in time.
    """
    with socket.socket() as listener:
        listener.bind((service.options.host, service.options.port))
        own = server(service, "warning")
        thread = threading.Thread(target=own.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            end = time.monotonic() + seconds
            while not own.started:
                if time.monotonic() > end or not thread.is_alive():
                    raise RuntimeError("the server did not start")
                time.sleep(0.01)
            yield f"http://{service.options.host}:{listener.getsockname()[1]}"
        finally:
            own.should_exit = True
            thread.join(seconds)
        if thread.is_alive():
            raise RuntimeError("the server did not end")


def announce(options: ServeOptions, method: str) -> str:
    """What is said when the server starts."""
    where = f"http://{options.host}:{options.port}"
    sources = "data URIs" + "".join(
        f", {name}" for name in (*options.media.domains, *([str(options.media.folder)] if options.media.folder else []))
    )
    memory = "a share of the memory" if options.kv_bytes is None else f"{options.kv_bytes / 2**30:.2f} GiB"
    return (
        f"{options.name} at {where}/v1 ({where}/docs). Pruning: {method}. At once: {options.rows} answers, "
        f"{memory} for keys and values; {options.queue} more requests may wait. "
        f"Pictures from {sources}. {'A key is asked for.' if options.keys else 'No key is asked for.'}"
    )
