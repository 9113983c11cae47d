"""Throughput and time to first token under load: unpruned one by one, unpruned batched, pruned batched.

    OMP_NUM_THREADS=1 python benchmarks/serving.py --json serving.json

Every load runs against the three servers in turn, in one process, over HTTP with the same questions and the same times
of arrival: an open loop, in which requests come whether or not earlier ones are answered (a Poisson process). A load of
4 means four times as many requests a second as the unpruned server can answer one by one, which is measured first.
Greedy answers of a fixed length.

    req/s    answered requests over the time from the first arrival to the last answer; it cannot exceed the rate of
             arrivals
    TTFT     from sending a request to the first piece of text, p50 and p99, in seconds; waiting counts
    ratio    over the unpruned server that answers one by one
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import torch

from foveate.families import presets
from foveate.files.environment import facts
from foveate.inference.answer import Asker
from foveate.scenes import load
from foveate.serve.choices import MethodChoices
from foveate.serve.options import ServeOptions
from foveate.serve.pictures import FORMATS
from foveate.serve.run import running
from foveate.serve.service import Service


@dataclass(frozen=True)
class Server:
    """One of the servers that are compared."""

    name: str
    method: str
    keep: float | None
    rows: int


def servers(method: str, keep: float, rows: int) -> list[Server]:
    """The reference first."""
    return [
        Server("unpruned, one by one", "none", None, 1),
        Server("unpruned, batched", "none", None, rows),
        Server(f"{method} {keep:.3g}, batched", method, keep, rows),
    ]


def mid_llava() -> Asker:
    """Random weights, 12 layers x 512, 576 visual tokens, with the zoo's tokenizer."""
    asker = Asker.load("foveate/scenes-llava", device="cpu")
    model = presets.build("mid-llava")
    tokenizer = asker.processor.tokenizer
    model.config.image_token_id = tokenizer.convert_tokens_to_ids(asker.processor.image_token)
    return replace(asker, model=model)


def requests(count: int, tokens: int) -> list[dict[str, Any]]:
    """Bodies without the model's name."""
    found = []
    for sample in load("test")[:count]:
        file = io.BytesIO()
        sample.image.save(file, FORMATS[0])
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": sample.question}]
        messages = [{"role": "user", "content": parts}]
        found.append({"messages": messages, "temperature": 0, "max_tokens": tokens, "stream": True})
    return found


async def one(client: httpx2.AsyncClient, content: dict[str, Any], at: float) -> tuple[float, float]:
    """Seconds to the first piece of text, and when the answer ended."""
    await asyncio.sleep(max(0.0, at - time.perf_counter()))
    sent, first = time.perf_counter(), None
    async with client.stream("POST", "/v1/chat/completions", json=content) as reply:
        assert reply.status_code == 200, await reply.aread()
        async for line in reply.aiter_lines():
            if first is None and line.startswith("data: {"):  # comes when the first token is chosen
                first = time.perf_counter() - sent
    assert first is not None
    return first, time.perf_counter()


async def timed(address: str, contents: list[dict[str, Any]], times: list[float]) -> tuple[list[float], float]:
    """All requests at their times of arrival: seconds to every first piece of text, and from the first arrival to the
    last answer."""
    limits = httpx2.Limits(max_connections=len(times))
    async with httpx2.AsyncClient(base_url=address, timeout=1800, limits=limits) as client:
        begin = time.perf_counter() + 0.1
        found = await asyncio.gather(*(one(client, c, begin + t) for c, t in zip(contents, times, strict=True)))
    return [first for first, _ in found], max(end for _, end in found) - begin - times[0]


def summary(firsts: list[float], seconds: float) -> dict[str, float]:
    """Of requests that took so many seconds together."""
    p50, p99 = np.percentile(firsts, [50, 99])
    return {"requests_per_second": len(firsts) / seconds, "ttft_p50": float(p50), "ttft_p99": float(p99)}


def measure(asker: Asker, server: Server, contents: list[dict[str, Any]], times: list[float]) -> dict[str, float]:
    """One server under one load."""
    options = ServeOptions(port=0, name="subject", rows=server.rows, queue=len(times), seconds=3600)
    service = Service(asker, MethodChoices(asker.model, server.method, server.keep), options)
    service.scheduler._ends = frozenset()  # answers of a fixed length, as the work of all servers must be the same
    bodies = [content | {"model": "subject"} for content in contents]
    with running(service, 3600) as address:
        asyncio.run(timed(address, bodies[:1], [0.0]))  # warm
        return summary(*asyncio.run(timed(address, bodies, times)))


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Times of a Poisson process."""
    source = random.Random(seed)
    times = [0.0]
    while len(times) < count:
        times.append(times[-1] + source.expovariate(rate))
    return times


def study(name: str, asker: Asker, given: argparse.Namespace) -> dict[str, Any]:
    """All loads on one model."""
    compared = servers(given.method, given.keep, given.rows)
    contents = requests(given.requests, given.tokens)
    alone = measure(asker, compared[0], contents[:6], [0.0] * 6)["requests_per_second"]
    print(f"\n{name}: the unpruned server answers {alone:.2f} requests a second one by one", flush=True)
    print("| load | server | req/s | ratio | TTFT p50 | p99 | p50 ratio |\n|---|---|---|---|---|---|---|", flush=True)
    rows = []
    for load_ in given.loads:
        times = arrivals(given.requests, alone * load_, given.seed)
        found = [measure(asker, server, contents, times) for server in compared]
        for server, own in zip(compared, found, strict=True):
            faster = own["requests_per_second"] / found[0]["requests_per_second"]
            sooner = found[0]["ttft_p50"] / own["ttft_p50"]
            rows.append({"load": load_, "server": server.name, **own, "throughput_ratio": faster, "ttft_ratio": sooner})
            print(
                f"| {load_:g} | {server.name} | {own['requests_per_second']:.2f} | {faster:.2f} | "
                f"{own['ttft_p50']:.2f} | {own['ttft_p99']:.2f} | {sooner:.2f} |",
                flush=True,
            )
    return {"model": name, "alone": alone, "rows": rows, "environment": facts(asker.model)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="vitcop")
    parser.add_argument("--keep", type=float, default=1 / 9)
    parser.add_argument("--loads", type=float, nargs="+", default=[1, 4, 12, 32])
    parser.add_argument("--requests", type=int, default=32, help="per load and server")
    parser.add_argument("--rows", type=int, default=12, help="of the batched servers")
    parser.add_argument("--tokens", type=int, default=8, help="of an answer")
    parser.add_argument("--models", nargs="+", default=["mid-llava", "foveate/scenes-qwen2_5_vl"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    found = []
    for name in given.models:
        asker = mid_llava() if name == "mid-llava" else Asker.load(name, device="cpu")
        found.append(study(name, asker, given))
    if given.json is not None:
        text = {"command": " ".join(sys.argv), "threads": torch.get_num_threads(), "models": found}
        given.json.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
