"""Time to first token: unpruned, pruned in the language model only, pruned in the vision tower as well.

    python benchmarks/ttft.py                                  # mid-size Qwen-like geometry, CPU, one thread
    python benchmarks/ttft.py --tokens 2304 --json ttft.json
    python benchmarks/ttft.py --accuracy 180                   # what it costs on the built-in scenes
    python benchmarks/ttft.py --accuracy 180 --data scenes:large

Speed: random weights, one picture of a scene (enlarged to the number of tokens), a prefill with its vision tower. All
settings of a size run interleaved in one process; the unpruned time of a repeat is divided by the others of that
repeat, and the medians of these ratios are shown, of CPU time (so that a busy machine disturbs them little). Ideal is
the ratio of operations (`foveate.bench.flops`, without the method's own work). The load average of the machine is
printed with them. With several threads, time is that of the clock.

Accuracy: greedy answers of the shipped Qwen2.5-VL-like model, exact match, the same questions under every setting;
differences are paired, with standard errors.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor

import foveate
from foveate import scenes, zoo
from foveate.bench.flops import count, vision_flops
from foveate.core.method import Method
from foveate.evals.paired import difference
from foveate.evals.questions import load, prepare
from foveate.families import adapt
from foveate.families.geometry import Geometry
from foveate.families.presets import build
from foveate.families.prompts import nearly_square, random_prompt
from foveate.files.atomic import write_text
from foveate.inference.answer import Asker
from foveate.methods import Compose, DivPrune, PixelPrune, Random, TowerFilter, ViTCoP

KEEP = 1 / 9
TOKEN = 28
"""Pixels of a visual token's side."""
SPEED: dict[str, Method | None] = {
    "unpruned": None,
    "keep=1.0": Random(keep=1.0),
    "ViTCoP": ViTCoP(keep=KEEP),
    "tower 50 % + ViTCoP": ViTCoP(keep=KEEP, tower=0.5),
    "tower 30 % + ViTCoP": ViTCoP(keep=KEEP, tower=0.3),
    "max-min before block 2, 50 % + ViTCoP": ViTCoP(keep=KEEP, tower=TowerFilter(by="max_min")),
    "tower 50 % + DivPrune": Compose(TowerFilter(), DivPrune(keep=KEEP)),
    "PixelPrune, tau 50/255 + ViTCoP": ViTCoP(keep=KEEP, tower=PixelPrune(tau=50 / 255)),
}
ACCURACY: dict[str, Method | None] = {
    "unpruned": None,
    "ViTCoP": ViTCoP(keep=KEEP),
    "tower 50 % + ViTCoP": ViTCoP(keep=KEEP, tower=0.5),
    "tower 30 % + ViTCoP": ViTCoP(keep=KEEP, tower=0.3),
    "DivPrune": DivPrune(keep=KEEP),
    "tower 50 % + DivPrune": Compose(TowerFilter(), DivPrune(keep=KEEP)),
    "tower 50 % alone": TowerFilter(),
    "max-min before block 2, 50 % + ViTCoP": ViTCoP(keep=KEEP, tower=TowerFilter(by="max_min")),
    "PixelPrune, tau 50/255": PixelPrune(tau=50 / 255),
    "PixelPrune, tau 50/255 + ViTCoP": ViTCoP(keep=KEEP, tower=PixelPrune(tau=50 / 255)),
}
BASELINES = {key: key.rpartition(" + ")[2] for key in ACCURACY if " + " in key}


def prefill(model: Any, inputs: dict[str, Any], method: Method | None, stock: bool) -> tuple[float, Any]:
    """Seconds until the first token's logits, images included: of CPU, or of the clock with several threads; `stock`
    runs without foveate."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    if stock:
        model(**inputs, use_cache=True, logits_to_keep=1)
        return clock() - start, None
    with foveate.prune(model, method) as trace:
        model(**inputs, use_cache=True, logits_to_keep=1)
    return clock() - start, trace.last


def scene_prompt(model: Any, tokens: int) -> dict[str, Any]:
    """A prompt of random text with one scene, enlarged to so many tokens; its pixels as Qwen's processor makes them."""
    inputs = random_prompt(model, tokens)
    height, width = (TOKEN * n for n in nearly_square(tokens))
    picture = scenes.load("hard", 1)[0].image.resize((width, height), Image.Resampling.BICUBIC)
    processor = AutoImageProcessor.from_pretrained(zoo.resolve("foveate/scenes-qwen2_5_vl"))
    made = processor(picture, do_resize=False, return_tensors="pt")
    assert torch.equal(made["image_grid_thw"], inputs["image_grid_thw"].cpu())
    return inputs | {"pixel_values": made["pixel_values"].to(inputs["pixel_values"])}


def first_token_flops(model: Any, inputs: dict[str, Any], method: Method | None) -> int:
    family = adapt(model)
    with foveate.prune(model, method) as trace:
        model(**inputs, use_cache=True, logits_to_keep=1)
    vision = vision_flops(family, inputs, trace.last)
    return count(Geometry.of(family), trace.last, 1, vision).first_token


@torch.inference_mode()
def speed(name: str, tokens: int, repeats: int) -> list[dict[str, Any]]:
    model = build(name, tokens=tokens)
    inputs = scene_prompt(model, tokens)
    flops = {key: first_token_flops(model, inputs, method) for key, method in SPEED.items()}  # and warm
    took: dict[str, list[float]] = {key: [] for key in SPEED}
    order = list(SPEED)
    for number in range(repeats):
        print(f"repeat {number + 1} of {repeats}, load {os.getloadavg()[0]:.1f}", flush=True)
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
        shown = f"{speedup:.2f} ({spread[0]:.2f}-{spread[1]:.2f}) | {ideal:.2f} | {speedup / ideal:.2f}"
        print(f"| {tokens:,} | {key} | {row['seconds']:.2f} | {shown} |", flush=True)
    return rows


def accuracy(model: str, data: str, questions: int, batch: int) -> list[dict[str, Any]]:
    asker = Asker.load(model, 8)
    task = load(data, questions)
    correct: dict[str, list[float]] = {key: [] for key in ACCURACY}
    kept: dict[str, list[float]] = {key: [] for key in ACCURACY}
    for start in range(0, len(task.ids), batch):
        rows, inputs = prepare(asker, task[start : start + batch], False, [])
        for key, method in ACCURACY.items():
            answers = asker.answer(inputs, method)
            correct[key] += [float(right(answer.text, row.answers)) for answer, row in zip(answers, rows, strict=True)]
            kept[key].append(answers[0].prefill.keep_ratio)
        if (start // batch + 1) % 10 == 0:
            print(f"{len(correct['unpruned'])} questions", flush=True)
    return summary(correct, kept)


def summary(correct: dict[str, list[float]], kept: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Answers that are right, in percent, and paired differences in points with their standard errors."""
    found = []
    for key, own in correct.items():
        row = {"setting": key, "n": len(own), "correct": 100 * statistics.mean(own), "kept": statistics.mean(kept[key])}
        for name in ("unpruned", BASELINES.get(key, "")):
            if name and name != key:
                change = difference(own, correct[name])
                row[f"against {name}"] = [100 * change.mean, 100 * (change.error or 0.0)]
        found.append(row)
        print(row, flush=True)
    return found


def documents(model: str, questions: int, batch: int) -> list[dict[str, Any]]:
    """Scenes on a white page: what PixelPrune at tau 0 drops, and what it changes."""
    asker, task = Asker.load(model, 8), load("scenes", questions)
    same, correct, kept = [], {"unpruned": 0, "PixelPrune, tau 0": 0}, []
    for start in range(0, len(task.ids), batch):
        pages = [replace(row, images=tuple(map(page, row.images))) for row in task[start : start + batch]]
        rows, inputs = prepare(asker, pages, False, [])
        stock, pruned = asker.answer(inputs, None), asker.answer(inputs, PixelPrune())
        same += [a.text == b.text for a, b in zip(stock, pruned, strict=True)]
        for key, answers in zip(correct, (stock, pruned), strict=True):
            correct[key] += sum(right(answer.text, row.answers) for answer, row in zip(answers, rows, strict=True))
        kept.append(pruned[0].prefill.keep_ratio)
    found = {"n": len(same), "same answers": sum(same), "kept": statistics.mean(kept), **correct}
    print(found)
    return [found]


def page(picture: Image.Image) -> Image.Image:
    """The picture with white margins of two tokens."""
    found = Image.new("RGB", (picture.width + 4 * TOKEN, picture.height + 4 * TOKEN), "white")
    found.paste(picture, (2 * TOKEN, 2 * TOKEN))
    return found


def right(text: str, answers: Sequence[str]) -> bool:
    return text.strip().lower() in [answer.strip().lower() for answer in answers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mid-qwen2.5-vl")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2304, 5040])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--accuracy", type=int, default=0, metavar="N", help="ask N questions instead of timing")
    parser.add_argument("--documents", type=int, default=0, metavar="N", help="ask N questions about white pages")
    parser.add_argument("--asked", default="foveate/scenes-qwen2_5_vl", help="the model that answers")
    parser.add_argument("--data", default="scenes:test", help="what is asked about")
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"load {os.getloadavg()}", flush=True)
    if options.accuracy:
        found = accuracy(options.asked, options.data, options.accuracy, options.batch)
    elif options.documents:
        found = documents(options.asked, options.documents, options.batch)
    else:
        found = [row for tokens in options.tokens for row in speed(options.model, tokens, options.repeats)]
    print(f"load {os.getloadavg()}")
    if options.json:
        write_text(options.json, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
