"""Many clients at once, of whom some leave, send nonsense or read slowly: nobody else notices, and nothing is left."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import httpx2
import psutil
import pytest

from foveate.methods import make
from foveate.serve.options import ServeOptions
from tests.serve.live import body, post, scenes, served, wait_until, zoo_asker

CLIENTS = 60
CHOICES: list[dict[str, Any]] = [{}, {"keep": 0.5}, {"method": "none"}, {"method": "visionzip", "keep": 0.2}]
OPTIONS = ServeOptions(methods=("visionzip",), rows=8, queue=CLIENTS, patience=3)


def expected(number: int) -> str:
    image, question = scenes()[number % 12]
    chosen = CHOICES[number % 4]
    name, keep = chosen.get("method", "vitcop"), chosen.get("keep", 1 / 3)
    asker = zoo_asker()
    method = None if name == "none" else make(name, keep=keep)
    return asker.answer(asker.questions([([image], question)]), method, max_new_tokens=12)[0].text


def wanted(number: int, **more: Any) -> dict[str, Any]:
    image, question = scenes()[number % 12]
    return body([image], question, foveate=CHOICES[number % 4], **more)


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


async def crowd(address: str) -> dict[int, str]:
    limits = httpx2.Limits(max_connections=CLIENTS)
    async with httpx2.AsyncClient(base_url=address, timeout=300, limits=limits) as client:
        tasks = [(asks, reads_slowly, leaves, sends_nonsense, leaves)[i % 5](client, i) for i in range(CLIENTS)]
        found = await asyncio.gather(*tasks)
    return {number: text for number, text in enumerate(found) if number % 5 in (0, 1) and text is not None}


def test_a_crowd() -> None:
    with served(OPTIONS) as (address, service):
        for _ in range(2):
            answers = asyncio.run(crowd(address))
            assert len(answers) == CLIENTS * 2 // 5
            for number, text in answers.items():
                assert text == expected(number), number
            wait_until(lambda: service.inside == 0 and service.scheduler.running == 0)
        counted = httpx2.get(f"{address}/metrics").text
        assert 'status="5' not in counted
        assert service.scheduler._running == {}


def test_memory_does_not_grow() -> None:
    """After warming up, a hundred requests, half of them cancelled, leave no more than a few megabytes."""
    with served(OPTIONS) as (address, service):
        measured = []
        for _ in range(4):
            asyncio.run(crowd(address))
            wait_until(lambda: service.inside == 0 and service.scheduler.running == 0)
            measured.append(psutil.Process().memory_info().rss)
    assert measured[3] - measured[1] < 60_000_000, measured


def test_more_than_the_queue_holds() -> None:
    with served(ServeOptions(rows=1, queue=2)) as (address, _):

        async def many() -> list[httpx2.Response]:
            async with httpx2.AsyncClient(base_url=address, timeout=300) as client:
                return await asyncio.gather(*(client.post("/v1/chat/completions", json=wanted(0)) for _ in range(12)))

        replies = asyncio.run(many())
        refused = [reply for reply in replies if reply.status_code == 429]
        assert {reply.status_code for reply in replies} == {200, 429}
        assert len(refused) >= 6
        assert all(int(reply.headers["Retry-After"]) >= 1 for reply in refused)
        assert refused[0].json()["error"]["type"] == "rate_limit_error"
        assert post(address, wanted(0)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_row(stream: bool) -> None:
    with served(ServeOptions(rows=1, seconds=600)) as (address, service):
        service.scheduler._ends = frozenset()  # only the limit ends an answer
        endless = wanted(0, stream=stream) | {"max_tokens": 1500}

        async def leave() -> None:
            async with httpx2.AsyncClient(base_url=address, timeout=300) as client:
                task = asyncio.create_task(client.post("/v1/chat/completions", json=endless))
                while not service.scheduler.steps:
                    assert not task.done()
                    await asyncio.sleep(0.01)
                task.cancel()

        asyncio.run(leave())
        assert post(address, wanted(0)).status_code == 200  # the only row is free again
        assert service.scheduler.tokens < 1500
        assert "foveate_cancelled_total 1.0" in httpx2.get(f"{address}/metrics").text
