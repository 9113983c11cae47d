"""Whether prompts that wait at the same time are better read together: one by one against one batch.

    OMP_NUM_THREADS=1 python benchmarks/prefills.py --rounds 7

Seconds for reading `--prompts` prompts of equal length (no padding: the best case for a batch), median over rounds in
which both take turns, with the lowest and highest ratio of a round. In a batch the first answer comes when all are
read; one by one, at their `1/n`-th of the time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from foveate.families import presets, prompts
from foveate.files.environment import facts
from foveate.inference.answer import generate
from foveate.methods import make


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mid-llava")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    torch.manual_seed(0)
    model, n = presets.build(given.model), given.prompts
    together = prompts.random_prompt(model, 576, batch=n)
    print("| keep | one by one, s | together, s | ratio (lowest, highest) |\n|---|---|---|---|", flush=True)
    for name, method in (("all", None), ("vitcop 1/9", make("vitcop", keep=1 / 9))):
        rows = [{key: value[row : row + 1] for key, value in together.items()} for row in range(n)]

        def alone(rows: list = rows, method: object = method) -> None:
            for row in rows:
                generate(model, row, method, max_new_tokens=1)

        def batched(method: object = method) -> None:
            generate(model, together, method, max_new_tokens=1)

        found = [(seconds(alone), seconds(batched)) for _ in range(given.rounds + 1)][1:]
        ratios = [a / b for a, b in found]
        a, b = (statistics.median(times) for times in zip(*found, strict=True))
        print(f"| {name} | {a:.2f} | {b:.2f} | {a / b:.2f} ({min(ratios):.2f}, {max(ratios):.2f}) |", flush=True)
    print(facts(model))


if __name__ == "__main__":
    main()
