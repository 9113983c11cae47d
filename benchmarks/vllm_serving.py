"""vLLM with the plugin against vLLM without: throughput and time to first token under load.

    make vllm-bench ARGS="--json benchmarks/results/vllm.json"

Two `vllm serve` of the same random model stay up side by side and are measured in turn, part by part, so that what else
the machine does hits both. Open loop, as in benchmarks/serving.py: a load of 4 means four times as many requests a
second as the server without the plugin answers one by one, which is measured first. Greedy answers of a fixed length;
no two images are the same. Columns as there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.serving import arrivals, mid_llava, requests, summary, timed
from foveate.files.environment import facts

SMALL = {
    "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}  # fmt: skip
"""Two servers on a small machine without a GPU."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def started(command: Sequence[str], port: int, seconds: float = 600) -> Iterator[str]:
    """The address of a server, once it is ready.

    Raises:
        RuntimeError: it ended, or was not ready within so many seconds; with the end of what it printed.
    """
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=SMALL | os.environ, start_new_session=True)
        try:
            address, end = f"http://127.0.0.1:{port}", time.monotonic() + seconds
            while not _ready(address):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise RuntimeError(f"{' '.join(command)} did not start:\n{log.read()[-4000:]}")
                time.sleep(0.5)
            yield address
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def served(model: str, *options: str) -> AbstractContextManager[str]:
    """The address of a `vllm serve`."""
    port = free_port()
    return started([str(Path(sys.executable).with_name("vllm")), "serve", model, "--port", str(port), *options], port)


def _ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def as_vllm_reads(folder: Path) -> None:
    """vLLM 0.32 knows weights of CLIP towers by an older name, and the placeholder of LLaVA by its older key."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    if "image_token_index" not in config:
        config["image_token_index"] = config["image_token_id"]
    file.write_text(json.dumps(config, indent=1))
    if config["vision_config"]["model_type"] != "clip_vision_model":
        return
    weights, old = load_file(folder / "model.safetensors"), "vision_tower.vision_model."
    renamed = {name if old in name else name.replace("vision_tower.", old): weight for name, weight in weights.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})


def write(folder: Path) -> dict[str, Any]:
    """The random model as a checkpoint; what must stand beside its numbers."""
    asker = mid_llava()
    tokenizer = asker.processor.tokenizer
    with torch.no_grad():  # answers are of words that can be decoded
        asker.model.lm_head.weight[len(tokenizer) :] = 0
        asker.model.lm_head.weight[tokenizer.all_special_ids] = 0
    asker.model.generation_config.eos_token_id = None
    asker.model.save_pretrained(folder)
    asker.processor.save_pretrained(folder)
    as_vllm_reads(folder)
    return facts(asker.model)


def measure(addresses: Sequence[str], bodies: Sequence[dict[str, Any]], rate: float, parts: int) -> list[Any]:
    """Both servers under one load, in turn: each part of the requests against the one, then against the other."""
    firsts: list[list[float]] = [[] for _ in addresses]
    seconds = [0.0 for _ in addresses]
    for part in range(parts):
        own = list(bodies[part::parts])
        times = arrivals(len(own), rate, seed=part)
        for number, address in enumerate(addresses):
            found, took = asyncio.run(timed(address, own, times))
            firsts[number] += found
            seconds[number] += took
    return [summary(*pair) for pair in zip(firsts, seconds, strict=True)]


def study(given: argparse.Namespace) -> dict[str, Any]:
    """All loads."""
    pruned = json.dumps({"foveate": {"method": given.method, "keep": given.keep}})
    common = ["--dtype", "float32", "--max-model-len", "1000", "--max-num-seqs", str(given.rows), "--enforce-eager"]
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        environment = write(Path(made))
        addresses = [
            stack.enter_context(served(made, *common, *own, "--served-model-name", "subject"))
            for own in ([], ["--hf-overrides", pruned])
        ]
        spare = 6
        made_of = requests(spare + given.requests * len(given.loads), given.tokens)
        bodies = [body | {"model": "subject", "ignore_eos": True} for body in made_of]
        for address in addresses:
            asyncio.run(timed(address, bodies[:2], [0.0, 0.0]))  # warm
        _, took = zip(*(asyncio.run(timed(addresses[0], [body], [0.0])) for body in bodies[2:spare]), strict=True)
        alone = len(took) / sum(took)
        print(f"vLLM without the plugin answers {alone:.2f} requests a second one by one", flush=True)
        print("| load | vLLM | req/s | ratio | TTFT p50 | p99 | p50 ratio |\n|---|---|---|---|---|---|---|", flush=True)
        rows: list[dict[str, Any]] = []
        for number, load in enumerate(given.loads):
            own = bodies[spare + number * given.requests :][: given.requests]
            found = measure(addresses, own, alone * load, given.parts)
            rows += [shown(load, name, one, found[0]) for name, one in zip(("without", "with"), found, strict=True)]
    return {"alone": alone, "rows": rows, "environment": environment}


def shown(load: float, name: str, found: dict[str, float], reference: dict[str, float]) -> dict[str, Any]:
    faster = found["requests_per_second"] / reference["requests_per_second"]
    sooner = reference["ttft_p50"] / found["ttft_p50"]
    print(
        f"| {load:g} | {name} | {found['requests_per_second']:.2f} | {faster:.2f} | {found['ttft_p50']:.2f} | "
        f"{found['ttft_p99']:.2f} | {sooner:.2f} |",
        flush=True,
    )
    return {"load": load, "vllm": name, **found, "throughput_ratio": faster, "ttft_ratio": sooner}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="visionzip")
    parser.add_argument("--keep", type=float, default=1 / 9)
    parser.add_argument("--loads", type=float, nargs="+", default=[4, 12])
    parser.add_argument("--requests", type=int, default=24, help="per load and server")
    parser.add_argument("--parts", type=int, default=2, help="in which they are measured in turn")
    parser.add_argument("--rows", type=int, default=12, help="sequences that a server runs at once")
    parser.add_argument("--tokens", type=int, default=8, help="of an answer")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    found = {"command": " ".join(sys.argv), **study(given)}
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
