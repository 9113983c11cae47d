"""The endpoints: `/v1/chat/completions`, `/v1/models`, `/health`, `/metrics`, and the OpenAPI pages."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from foveate.errors import FoveateError
from foveate.serve import schema
from foveate.serve.problems import RequestError, of
from foveate.serve.service import Ongoing, Service
from foveate.serve.wire import EventStream, check_host, check_key, read_body, unless_gone
from foveate.version import __version__

GONE = 499
"""Status that is counted for a client that left; nobody reads it."""


def build(service: Service) -> FastAPI:
    """The application over a service, which it starts and ends."""

    @contextlib.asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        service.scheduler.start()
        yield
        await asyncio.to_thread(service.scheduler.close)
        service.preparation.close()

    app = FastAPI(title="foveate", version=__version__, lifespan=life)
    app.state.service = service
    _add_errors(app, service)
    _add_chat(app, service)
    _add_models(app, service)
    _add_state(app, service)
    return app


def _add_chat(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", openapi_extra=schema.openapi())
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation, whole or as a stream."""
        arrived = time.monotonic()
        _check(request, service)
        with contextlib.ExitStack() as place:
            place.enter_context(service.place())
            body = await read_body(request, service.options)
            found = await unless_gone(request, _answer(service, body, arrived))
            service.metrics.requests.labels(200).inc()
            if not isinstance(found, Ongoing):
                return JSONResponse(found)
            place.callback(found.leave)
            return EventStream(found.chunks(), service.options.patience, place.pop_all().close)


async def _answer(service: Service, body: bytes, arrived: float) -> dict[str, Any] | Ongoing:
    ongoing = await service.begin(body, arrived)
    if ongoing.stream:
        return ongoing
    try:
        return await ongoing.whole()
    finally:
        ongoing.leave()


def _add_models(app: FastAPI, service: Service) -> None:
    described = {"id": service.options.name, "object": "model", "created": int(time.time()), "owned_by": "foveate"}

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        """The one model of this server."""
        _check(request, service)
        return {"object": "list", "data": [described]}

    @app.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> dict[str, Any]:
        """The model, if it has this name."""
        _check(request, service)
        if name != service.options.name:
            raise RequestError("There is no model of this name here.", 404, "model", "model_not_found")
        return described


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> Response:
        """200 while requests are worked on."""
        alive = service.scheduler.alive
        return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Counters for Prometheus."""
        _check(request, service)
        return Response(service.metrics.page(), media_type=CONTENT_TYPE_LATEST)


def _check(request: Request, service: Service) -> None:
    check_host(request, service.options)
    check_key(request, service.options)


def _add_errors(app: FastAPI, service: Service) -> None:
    def reply(problem: RequestError) -> Response:
        service.metrics.requests.labels(problem.status).inc()
        return JSONResponse(problem.body(), problem.status, headers=dict(problem.headers()))

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        service.metrics.requests.labels(GONE).inc()
        return Response(status_code=GONE)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        return reply(RequestError(str(error.detail), error.status_code))

    @app.exception_handler(Exception)
    async def every(request: Request, error: Exception) -> Response:
        return reply(of(error))

    app.add_exception_handler(FoveateError, every)  # found before Exception, which is also raised again for the log
