"""The server as replicas on Ray Serve: what Ray hands on is what one process answers."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import time
from collections.abc import Iterator

import httpx2
import pytest

pytest.importorskip("ray.serve", reason="needs the extra `ray`")

from foveate.errors import ConfigurationError
from foveate.serve.replicas import Scaling
from tests.cli.run import foveate
from tests.serve.crowd import asks, ends_under_load, expected, reads_slowly, wanted
from tests.serve.live import post
from tests.serve.test_shutdown import command

pytestmark = pytest.mark.slow
ROWS, QUEUE, REPLICAS = 2, 6, 2


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    limits = ("--max-rows", str(ROWS), "--max-queue", str(QUEUE), "--allow-method", "visionzip")
    with command("--ray", "--replicas", str(REPLICAS), "--cpus", "0.5", *limits, seconds=300) as found:
        yield found


async def _all(address: str, work: list) -> list:
    async with httpx2.AsyncClient(base_url=address, timeout=300) as client:
        return await asyncio.gather(*(one(client) for one in work))


def _gauges(address: str) -> dict[str, float]:
    """Of the replica that the proxy chooses this time."""
    page = httpx2.get(f"{address}/metrics").text
    return {
        name: float(n) for name, n in re.findall(r"^foveate_(inside|rows|waiting|cancelled_total) (\S+)", page, re.M)
    }


def test_answers_are_the_offline_ones(running: tuple[str, subprocess.Popen[str]]) -> None:
    numbers = range(2 * REPLICAS * ROWS)
    asked = [lambda client, n=n: (reads_slowly if n % 2 else asks)(client, n) for n in numbers]
    assert asyncio.run(_all(running[0], asked)) == [expected(n) for n in numbers]


def test_refusals_are_handed_on(running: tuple[str, subprocess.Popen[str]]) -> None:
    address = running[0]
    unknown = post(address, wanted(0, logprobs=True))
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "logprobs")
    assert httpx2.post(f"{address}/v1/chat/completions", content=b"x").status_code == 415
    foreign = httpx2.get(f"{address}/v1/models", headers={"Host": "evil.example"})
    assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "host")
    assert httpx2.get(f"{address}/v1/none").status_code == 404
    assert httpx2.get(f"{address}/openapi.json").json()["info"]["title"] == "foveate"


def test_more_than_the_places(running: tuple[str, subprocess.Popen[str]]) -> None:
    many = 3 * REPLICAS * (ROWS + QUEUE)
    replies = asyncio.run(
        _all(running[0], [lambda client: client.post("/v1/chat/completions", json=wanted(0))] * many)
    )  # fmt: skip
    assert {reply.status_code for reply in replies} == {200, 429}
    assert all(int(reply.headers["Retry-After"]) >= 1 for reply in replies if reply.status_code == 429)


def test_clients_that_leave_are_not_worked_for(running: tuple[str, subprocess.Popen[str]]) -> None:
    async def leave() -> None:
        async with httpx2.AsyncClient(base_url=running[0], timeout=300) as client:
            tasks = [asyncio.create_task(reads_slowly(client, n)) for n in range(REPLICAS * (ROWS + QUEUE))]
            await asyncio.sleep(1.0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(leave())
    end, seen = time.monotonic() + 60, [_gauges(running[0])]
    while time.monotonic() < end and not (
        any(one.get("cancelled_total") for one in seen)
        and not any(one["inside"] + one["rows"] + one["waiting"] for one in seen[-8:])
    ):
        time.sleep(0.1)
        seen.append(_gauges(running[0]))
    assert any(one.get("cancelled_total") for one in seen)
    assert not any(one["inside"] + one["rows"] + one["waiting"] for one in seen[-8:])
    assert post(running[0], wanted(0)).status_code == 200


def test_sigterm_under_load_loses_no_accepted_request(running: tuple[str, subprocess.Popen[str]]) -> None:
    address, process = running
    met = asyncio.run(ends_under_load(address, REPLICAS * (ROWS + QUEUE), lambda: process.send_signal(signal.SIGTERM)))
    print(met)
    assert not met.lost
    assert met.refused <= {404, 503, "no connection"}  # the first two are Ray's, once the deployment is to end
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "Traceback" not in output


def test_what_cannot_be_served_is_told_before_replicas_start() -> None:
    for more, said in (
        (["--method", "fastv", "--keep", "0.01"], "cannot keep 0.01"),
        (["--replicas", "1000"], "this machine has"),
    ):
        done = foveate("serve", "--ray", "--cpus", "0.5", "--device", "cpu", *more)
        assert done.returncode == 1, done.stderr
        assert said in done.stderr


def test_scaling_is_rays() -> None:
    own = Scaling(1, 4, {"downscale_delay_s": "30"}).options(7)["autoscaling_config"]
    assert (own.min_replicas, own.max_replicas, own.target_ongoing_requests, own.downscale_delay_s) == (1, 4, 7, 30)
    assert Scaling(3, 3).options(7) == {"num_replicas": 3}
    for scaling, said in (
        (Scaling(3, 2), "LEAST <= MOST"),
        (Scaling(0, 0), "LEAST <= MOST"),
        (Scaling(1, 2, {"magic": "1"}), "knows no magic"),
        (Scaling(1, 2, {"target_ongoing_requests": "-1"}), "--autoscaling"),
        (Scaling(2, 2, {"target_ongoing_requests": "1"}), "for a range"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            scaling.options(7)
