"""Clients of all kinds: some ask, some read slowly, some leave, some send nonsense."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import httpx2

from foveate.methods import make
from tests.serve.live import body, scenes, zoo_asker

CHOICES: list[dict[str, Any]] = [{}, {"keep": 0.5}, {"method": "none"}, {"method": "visionzip", "keep": 0.2}]


def expected(number: int) -> str:
    """The offline answer to a client's question."""
    return _offline(number % 12, _choice(number))


def wanted(number: int, **more: Any) -> dict[str, Any]:
    """A client's request."""
    image, question = scenes()[number % 12]
    return body([image], question, foveate=CHOICES[_choice(number)], **more)


def _choice(number: int) -> int:
    return (number + number // 12) % len(CHOICES)


@cache
def _offline(scene: int, choice: int) -> str:
    image, question = scenes()[scene]
    chosen = CHOICES[choice]
    name, keep = chosen.get("method", "vitcop"), chosen.get("keep", 1 / 3)
    asker = zoo_asker()
    method = None if name == "none" else make(name, keep=keep)
    return asker.answer(asker.questions([([image], question)]), method, max_new_tokens=12)[0].text


async def asks(client: httpx2.AsyncClient, number: int) -> str:
    reply = await client.post("/v1/chat/completions", json=wanted(number))
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


async def reads_slowly(client: httpx2.AsyncClient, number: int) -> str:
    text = ""
    async with client.stream("POST", "/v1/chat/completions", json=wanted(number, stream=True)) as reply:
        assert reply.status_code == 200
        async for line in reply.aiter_lines():
            await asyncio.sleep(0.02)
            if line.startswith("data: {"):
                text += "".join(c["delta"].get("content", "") for c in json.loads(line[6:])["choices"])
    return text


async def leaves(client: httpx2.AsyncClient, number: int) -> None:
    """At any moment: before, during or after the prefill, of a stream or not."""
    patience = random.Random(number).random() * 1.5
    try:
        async with asyncio.timeout(patience):
            await reads_slowly(client, number) if number % 2 else await asks(client, number)
    except TimeoutError:
        pass


async def sends_nonsense(client: httpx2.AsyncClient, number: int) -> None:
    raw = json.dumps(wanted(number)).encode()
    cut = random.Random(number).randrange(len(raw))
    reply = await client.post(
        "/v1/chat/completions", content=raw[:cut], headers={"Content-Type": "application/json"}
    )  # fmt: skip
    assert 400 <= reply.status_code < 500


async def crowd(address: str, clients: int) -> dict[int, str]:
    """All at once; answers of those that wait for them, by number."""
    limits = httpx2.Limits(max_connections=clients)
    async with httpx2.AsyncClient(base_url=address, timeout=1800, limits=limits) as client:
        tasks = [(asks, reads_slowly, leaves, sends_nonsense, leaves)[i % 5](client, i) for i in range(clients)]
        found = await asyncio.gather(*tasks)
    return {number: text for number, text in enumerate(found) if number % 5 in (0, 1) and text is not None}


@dataclass
class Ending:
    """What clients met that went on asking while a server ended."""

    answered: int = 0
    refused: set[int | str] = field(default_factory=set)
    lost: list[str] = field(default_factory=list)


async def keeps_asking(address: str, number: int, step: int, met: Ending) -> None:
    """One question after the other, whole and as streams, until one is not let in. What is let in must be answered."""
    own = httpx2.Limits(max_keepalive_connections=0)  # one that is kept may be closed just as it is used
    async with httpx2.AsyncClient(base_url=address, timeout=300, limits=own) as client:
        while True:
            stream = number % 2 == 1
            try:
                reply = await client.post("/v1/chat/completions", json=wanted(number, stream=stream))
            except httpx2.ConnectError:
                met.refused.add("no connection")
                return
            except httpx2.HTTPError as error:
                met.lost.append(f"{number}: {error!r}")
                return
            if reply.status_code == 429:
                await asyncio.sleep(0.1)
                continue
            if reply.status_code != 200:
                met.refused.add(reply.status_code)
                return
            text = streamed(reply.text) if stream else reply.json()["choices"][0]["message"]["content"]
            if text != expected(number):
                met.lost.append(f"{number}: {text!r} instead of {expected(number)!r}")
            met.answered += 1
            number += step


def streamed(events: str) -> str | None:
    """The text of a stream; None if it was cut."""
    *lines, last = [line.removeprefix("data: ") for line in events.splitlines() if line]
    pieces = [choice["delta"].get("content", "") for line in lines for choice in json.loads(line)["choices"]]
    return "".join(pieces) if last == "[DONE]" else None


async def ends_under_load(address: str, clients: int, end: Callable[[], None]) -> Ending:
    """Clients that go on asking; `end` is called when each has had an answer or two."""
    for number in range(12 * len(CHOICES)):  # every pair; worked out while clients wait, it would hold them up
        expected(number)
    met = Ending()
    tasks = [asyncio.create_task(keeps_asking(address, number, clients, met)) for number in range(clients)]
    while met.answered < 2 * clients:
        assert not met.lost, met
        assert not met.refused, met
        await asyncio.sleep(0.01)
    end()
    await asyncio.gather(*tasks)
    return met
