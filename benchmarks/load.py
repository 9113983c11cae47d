"""A crowd of clients against `foveate serve`, in a process of its own.

    make load                                    # 1,000 clients a round, a few minutes
    python -m benchmarks.load --clients 100

Two in five clients wait for their answers, half of these reading a stream slowly; two in five leave at a random moment;
one in five sends a body that is cut off. Checked: no status of 500 or more, every answer equal to the offline one, no
row and no byte of keys and values left, resident memory of the server after the last round no larger than after the
second (within `--growth` MB), and that SIGTERM under load loses no accepted request.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time

import httpx2
import psutil

from tests.serve.crowd import asks, crowd, expected
from tests.serve.live import wait_until


def start(port: int, clients: int) -> subprocess.Popen[bytes]:
    """The server."""
    run = "import sys; from foveate.cli import main; sys.exit(main())"
    command = ["serve", "--port", str(port), "--device", "cpu", "--keep", "1/3", "--allow-method", "visionzip"]
    limits = ["--max-rows", "16", "--max-queue", str(clients), "--time-limit", "1800", "--patience", "600"]
    return subprocess.Popen([sys.executable, "-c", run, *command, *limits], stdout=subprocess.DEVNULL)


def state(address: str) -> dict[str, float]:
    """The server's gauges, and its count of statuses of 500 and more."""
    page = httpx2.get(f"{address}/metrics", timeout=60).text
    gauges = re.findall(r"^foveate_(inside|rows|waiting|kv_bytes) (\S+)", page, re.MULTILINE)
    failed = re.findall(r'^foveate_requests_total{status="5\d\d"} (\S+)', page, re.MULTILINE)
    return {name: float(value) for name, value in gauges} | {"failed": sum(map(float, failed))}


def round_of(address: str, clients: int) -> None:
    """One crowd, and that nothing of it is left."""
    began = time.monotonic()
    answers = asyncio.run(crowd(address, clients))
    wrong = [number for number, text in answers.items() if text != expected(number)]
    assert not wrong, f"answers of {wrong[:10]} differ from the offline ones"
    wait_until(lambda: not any(state(address).values()), 120)
    print(f"{clients} clients, {len(answers)} answers equal to the offline ones, {time.monotonic() - began:.0f} s")


async def end_under_load(address: str, process: subprocess.Popen[bytes], clients: int) -> None:
    """SIGTERM while many wait: all are answered."""
    limits = httpx2.Limits(max_connections=clients)
    async with httpx2.AsyncClient(base_url=address, timeout=1800, limits=limits) as client:
        tasks = [asyncio.create_task(asks(client, number)) for number in range(clients)]
        while True:
            done = sum(task.done() for task in tasks)  # before the others are counted, so that none is counted twice
            inside = (await asyncio.to_thread(state, address))["inside"]
            if inside + done >= clients:
                break
            await asyncio.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        texts = await asyncio.gather(*tasks)
    assert inside > clients / 4, "nearly all were answered before the signal came"
    assert texts == [expected(number) for number in range(clients)]
    print(f"SIGTERM with {inside:.0f} requests inside: all {clients} answered as offline")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--growth", type=float, default=64, help="MB")
    given = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, process = f"http://127.0.0.1:{port}", start(port, given.clients)
    try:
        wait_until(lambda: _answers(address), 120)
        weights = []
        for _ in range(given.rounds):
            round_of(address, given.clients)
            weights.append(psutil.Process(process.pid).memory_info().rss / 1e6)
        print("resident MB after each round:", ", ".join(f"{weight:.0f}" for weight in weights))
        assert weights[-1] - weights[min(1, len(weights) - 1)] < given.growth, "memory grows"
        asyncio.run(end_under_load(address, process, min(100, given.clients)))
        assert process.wait(600) in (0, -signal.SIGTERM)
    finally:
        process.kill()


def _answers(address: str) -> bool:
    try:
        return httpx2.get(f"{address}/health").status_code == 200
    except httpx2.HTTPError:
        return False


if __name__ == "__main__":
    main()
