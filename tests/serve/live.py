"""A live server on loopback, in a thread of this process."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import httpx2
from PIL import Image

from foveate.inference.answer import Asker
from foveate.scenes.splits import load
from foveate.serve.choices import MethodChoices
from foveate.serve.options import ServeOptions
from foveate.serve.run import running
from foveate.serve.service import Service

MODEL = "foveate/scenes-qwen2_5_vl"


@cache
def zoo_asker(name: str = MODEL) -> Asker:
    return Asker.load(name, device="cpu")


def make_service(
    options: ServeOptions, method: str = "vitcop", keep: float | None = 1 / 3, name: str = MODEL
) -> Service:
    asker = zoo_asker(name)
    choices = MethodChoices(asker.model, method, keep, options.methods, options.keep_range)
    return Service(asker, choices, replace(options, name=name))


@contextmanager
def served(options: ServeOptions = ServeOptions(), **more: Any) -> Iterator[tuple[str, Service]]:  # noqa: B008
    """The address of a running server, and its service. At the end, nothing may be left inside."""
    service = make_service(replace(options, port=0), **more)
    with running(service) as address:
        yield address, service
        wait_until(lambda: service.inside == 0 and service.scheduler.running == 0)
        assert service.scheduler.held_bytes == service.scheduler.waiting == 0
    assert not service.scheduler.alive


def wait_until(true: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def data_uri(image: Image.Image, kind: str = "PNG") -> str:
    file = io.BytesIO()
    image.save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


@cache
def scenes(count: int = 12) -> list[tuple[Image.Image, str]]:
    """Pictures with questions."""
    return [(sample.image, sample.question) for sample in load("test")[:count]]


def turn(images: Sequence[Any], text: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": i if isinstance(i, str) else data_uri(i)}} for i in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def body(images: Sequence[Any] = (), text: str = "What is this?", **more: Any) -> dict[str, Any]:
    """A request, greedy unless it says otherwise."""
    return {"model": MODEL, "messages": [turn(images, text)], "temperature": 0, "max_tokens": 12} | more


def post(address: str, content: Any, **more: Any) -> httpx2.Response:
    return httpx2.post(f"{address}/v1/chat/completions", json=content, timeout=120, **more)
