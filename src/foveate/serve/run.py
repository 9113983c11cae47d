"""Start the server, and end it without losing a request that it has accepted."""

from __future__ import annotations

import uvicorn

from foveate.serve.app import build
from foveate.serve.options import ServeOptions
from foveate.serve.service import Service


def server(service: Service) -> uvicorn.Server:
    """A uvicorn server of the service. On SIGTERM and SIGINT it takes no new connections, finishes the requests that it
    has, and ends; what is longer than a request may last is cut."""
    options = service.options
    config = uvicorn.Config(
        build(service),
        host=options.host,
        port=options.port,
        timeout_graceful_shutdown=int(options.seconds + 2 * options.patience),
        timeout_keep_alive=5,
        server_header=False,
        ws="none",
        lifespan="on",
    )
    return uvicorn.Server(config)


def announce(options: ServeOptions, method: str, weight: int) -> str:
    """What is said when the server starts."""
    where = f"http://{options.host}:{options.port}"
    sources = "data URIs" + "".join(
        f", {name}" for name in (*options.media.domains, *([str(options.media.folder)] if options.media.folder else []))
    )
    return (
        f"{options.name} at {where}/v1 ({where}/docs). Pruning: {method}. At once: {options.rows} answers, "
        f"{weight / 2**30:.2f} GiB of keys and values; {options.queue} more requests may wait. "
        f"Pictures from {sources}. {'A key is asked for.' if options.keys else 'No key is asked for.'}"
    )
