"""Many clients at once, of whom some leave, send nonsense or read slowly: nobody else notices, and nothing is left."""

from __future__ import annotations

import asyncio

import httpx2
import psutil
import pytest

from foveate.serve.options import ServeOptions
from tests.serve.crowd import crowd, expected, wanted
from tests.serve.live import post, served, wait_until

CLIENTS = 60
OPTIONS = ServeOptions(methods=("visionzip",), rows=8, queue=CLIENTS, patience=3)


def test_a_crowd() -> None:
    with served(OPTIONS) as (address, service):
        for _ in range(2):
            answers = asyncio.run(crowd(address, CLIENTS))
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
            asyncio.run(crowd(address, CLIENTS))
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
