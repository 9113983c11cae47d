"""Time to first token: unpruned, pruned in the language model only, pruned in the vision tower as well.

    python benchmarks/ttft.py                                  # mid-size Qwen-like geometry, CPU, one thread
    python benchmarks/ttft.py --tokens 2304 --json ttft.json
    python benchmarks/ttft.py --accuracy 180                   # what it costs on the built-in scenes

Speed: random weights, one image of random pixels, a prefill with its tower. All settings of a size run interleaved
in one process; a repeat's times are divided by the unpruned time of the same repeat, and the medians of these ratios are
shown, of CPU time (so that a busy machine disturbs them little). Ideal is the ratio of operations (`foveate.bench.flops`,
without the method's own work). The load average of the machine is printed with them.

Accuracy: greedy answers of the shipped Qwen2.5-VL-like model, exact match, the same questions under every setting;
differences are paired, with standard errors.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import foveate
from foveate.bench.flops import count, vision_flops
from foveate.core.method import Method
from foveate.evals.paired import difference
from foveate.evals.questions import load, prepare
from foveate.families import adapt
from foveate.families.geometry import Geometry
from foveate.families.presets import build
from foveate.families.prompts import random_prompt
from foveate.files.atomic import write_text
from foveate.inference.answer import Asker
from foveate.methods import Compose, DivPrune, PixelPrune, Random, TowerFilter, ViTCoP

KEEP = 1 / 9
SPEED: dict[str, Method | None] = {
    "unpruned": None,
    "keep=1.0": Random(keep=1.0),
    "ViTCoP": ViTCoP(keep=KEEP),
    "tower 50 % + ViTCoP": ViTCoP(keep=KEEP, tower=0.5),
    "tower 30 % + ViTCoP": ViTCoP(keep=KEEP, tower=0.3),
    "max-min before block 2, 50 % + ViTCoP": ViTCoP(keep=KEEP, tower=TowerFilter(by="max_min")),
    "tower 50 % + DivPrune": Compose(TowerFilter(), DivPrune(keep=KEEP)),
}
ACCURACY: dict[str, Method | None] = {
    "unpruned": None,
    "ViTCoP": ViTCoP(keep=KEEP),
    "tower 50 % + ViTCoP": ViTCoP(keep=KEEP, tower=0.5),
    "tower 30 % + ViTCoP": ViTCoP(keep=KEEP, tower=0.3),
    "DivPrune": DivPrune(keep=KEEP),
    "tower 50 % + DivPrune": Compose(TowerFilter(), DivPrune(keep=KEEP)),
    "tower 50 % alone": TowerFilter(),
    "PixelPrune, tau 0": PixelPrune(),
    "PixelPrune, tau 50/255": PixelPrune(tau=50 / 255),
}
BASELINES = {"tower 50 % + ViTCoP": "ViTCoP", "tower 30 % + ViTCoP": "ViTCoP", "tower 50 % + DivPrune": "DivPrune"}


def prefill(model: Any, inputs: dict[str, Any], method: Method | None, stock: bool) -> tuple[float, Any]:
    """CPU seconds until the first token's logits, images included; `stock` runs without foveate."""
    start = time.process_time()
    if stock:
        model(**inputs, use_cache=True, logits_to_keep=1)
        return time.process_time() - start, None
    with foveate.prune(model, method) as trace:
        model(**inputs, use_cache=True, logits_to_keep=1)
    return time.process_time() - start, trace.last


def first_token_flops(model: Any, inputs: dict[str, Any], method: Method | None) -> int:
    family = adapt(model)
    with foveate.prune(model, method) as trace:
        model(**inputs, use_cache=True, logits_to_keep=1)
    vision = vision_flops(family, inputs, trace.last)
    return count(Geometry.of(family), trace.last, 1, vision).first_token


@torch.inference_mode()
def speed(name: str, tokens: int, repeats: int) -> list[dict[str, Any]]:
    model = build(name, tokens=tokens)
    inputs = random_prompt(model, tokens)
    flops = {key: first_token_flops(model, inputs, method) for key, method in SPEED.items()}  # and warm
    took: dict[str, list[float]] = {key: [] for key in SPEED}
    order = list(SPEED)
    for _ in range(repeats):
        for key in order:
            took[key].append(prefill(model, inputs, SPEED[key], key == "unpruned")[0])
        order = order[1:] + order[:1]
    rows = []
    for key in SPEED:
        ratios = [base / own for base, own in zip(took["unpruned"], took[key], strict=True)]
        ideal = flops["unpruned"] / flops[key]
        speedup = statistics.median(ratios)
        spread = [min(ratios), max(ratios)]
        row = {"tokens": tokens, "setting": key, "seconds": statistics.median(took[key]), "speedup": speedup}
        rows.append(row | {"ideal": ideal, "achieved": speedup / ideal, "range": spread, "load": os.getloadavg()[0]})
        print(
            f"| {tokens:,} | {key} | {row['seconds']:.2f} | {speedup:.2f} ({spread[0]:.2f}-{spread[1]:.2f}) | {ideal:.2f} "
            f"| {speedup / ideal:.2f} |",
            flush=True,
        )
    return rows


def accuracy(model: str, questions: int, batch: int) -> list[dict[str, Any]]:
    asker = Asker.load(model, 8)
    task = load("scenes", questions)
    correct: dict[str, list[float]] = {key: [] for key in ACCURACY}
    kept: dict[str, list[float]] = {key: [] for key in ACCURACY}
    for start in range(0, len(task.ids), batch):
        rows, inputs = prepare(asker, task[start : start + batch], False, [])
        for key, method in ACCURACY.items():
            answers = asker.answer(inputs, method)
            correct[key] += [
                float(answer.text.strip().lower() in [a.strip().lower() for a in row.answers])
                for answer, row in zip(answers, rows, strict=True)
            ]
            kept[key].append(answers[0].prefill.keep_ratio)
    found = []
    for key in ACCURACY:
        own = correct[key]
        row = {"setting": key, "n": len(own), "correct": 100 * statistics.mean(own), "kept": statistics.mean(kept[key])}
        for name in ("unpruned", BASELINES.get(key, "")):
            if name and name != key:
                change = difference(own, correct[name])
                row[f"against {name}"] = [100 * change.mean, 100 * (change.error or 0.0)]
        found.append(row)
        print(row, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mid-qwen2.5-vl")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2304, 5040])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--accuracy", type=int, default=0, metavar="N", help="ask N questions instead of timing")
    parser.add_argument("--asked", default="foveate/scenes-qwen2_5_vl", help="the model that answers")
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"load {os.getloadavg()}", flush=True)
    if options.accuracy:
        found = accuracy(options.asked, options.accuracy, options.batch)
    else:
        found = [row for tokens in options.tokens for row in speed(options.model, tokens, options.repeats)]
    print(f"load {os.getloadavg()}")
    if options.json:
        write_text(options.json, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
