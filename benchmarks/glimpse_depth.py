"""GlimpsePrune's front: what answers and time to first token make of the layer K after which it prunes.

    python benchmarks/glimpse_depth.py --module runs/k2 --module runs/k4 --module SHIPPED --markdown glimpse_depth.md

Accuracy: the zoo model, the questions of a split, greedy, exact match, a module a K, each run as it was trained.
Speed: `mid-qwen2.5-vl` with random weights, a module with random weights for every K that leaves a tenth of the
tokens, one image of `--tokens` tokens; CPU seconds of vision and prefill, unpruned over pruned within a repeat, median
and range.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

# the other benchmarks of time to first token
from ttft import first_token_flops, prefill, right

from foveate import zoo
from foveate.core.method import Method
from foveate.evals.paired import difference
from foveate.evals.questions import load, prepare
from foveate.families.presets import build
from foveate.families.prompts import random_prompt
from foveate.files.atomic import write_text
from foveate.files.environment import facts
from foveate.glimpse import GlimpseModule
from foveate.inference.answer import Asker
from foveate.methods import GlimpsePrune

KEPT = 0.1
"""Share of the tokens that stays, where speed is measured."""


def accuracy(asker: Asker, data: str, questions: int, modules: list[str], batch: int) -> Iterator[str]:
    """A row of the table for every module."""
    task = load(data, questions)
    settings: dict[int | None, Method | None] = {None: None}
    for folder in modules:
        method = GlimpsePrune(folder)
        settings[method.glimpse.config.reduce_layer] = method
    hits: dict[int | None, list[float]] = {depth: [] for depth in settings}
    kept: dict[int | None, list[float]] = {depth: [] for depth in settings}
    for start in range(0, len(task.ids), batch):
        rows, inputs = prepare(asker, task[start : start + batch], False, [])
        for depth, method in settings.items():
            for answer, row in zip(asker.answer(inputs, method), rows, strict=True):
                hits[depth].append(float(right(answer.text, row.answers)))
                kept[depth].append(answer.prefill.alive_per_layer(answer.row)[-1] / answer.visual_tokens)
        print(f"{len(hits[None])} questions", flush=True)
    for depth in sorted(settings, key=lambda d: -1 if d is None else d):
        change = difference(hits[depth], hits[None])
        against = "" if depth is None else f"{100 * change.mean:+.1f} ± {100 * (change.error or 0.0):.1f}"
        shares = f"{statistics.mean(kept[depth]):.1%} | {100 * statistics.mean(hits[depth]):.1f} | {against}"
        yield f"| {'unpruned' if depth is None else depth} | {shares} |"


@torch.inference_mode()
def speed(tokens: int, repeats: int) -> Iterator[str]:
    """A row of the table for every K."""
    model = build("mid-qwen2.5-vl", tokens)
    inputs, layers = random_prompt(model, tokens), model.config.text_config.num_hidden_layers
    torch.manual_seed(0)
    settings = {
        depth: GlimpsePrune(
            GlimpseModule.for_model(
                model, reduce_layer=depth, selected_layers=[depth - 1, depth], le_layers=list(range(depth + 1))
            ).eval(),
            threshold=0.0, max_keep=KEPT,
        )
        for depth in range(1, layers - 1, 2)
    }  # fmt: skip
    whole = first_token_flops(model, inputs, None)
    ideal = {depth: whole / first_token_flops(model, inputs, method) for depth, method in settings.items()}  # and warm
    took: dict[int, list[float]] = {depth: [] for depth in settings}
    for number in range(repeats):
        print(f"repeat {number + 1} of {repeats}, load {os.getloadavg()[0]:.1f}", flush=True)
        unpruned = prefill(model, inputs, None, stock=True)[0]
        for depth, method in settings.items():
            took[depth].append(unpruned / prefill(model, inputs, method, stock=False)[0])
    for depth, ratios in took.items():
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        yield f"| {depth} of {layers} | {spread} | {ideal[depth]:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", action="append", default=[], metavar="FOLDER", help="SHIPPED: beside the model")
    parser.add_argument("--data", default="scenes:test")
    parser.add_argument("--questions", type=int, default=180)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=2304)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--markdown", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    asker = Asker.load(zoo.DEFAULT, 8)
    modules = [f"{zoo.resolve(zoo.DEFAULT)}/glimpse" if name == "SHIPPED" else name for name in options.module]
    lines = [
        f"`python benchmarks/glimpse_depth.py {shlex.join(sys.argv[1:])}`", "",
        f"{options.questions} questions of {options.data}, greedy, exact match; difference in points from unpruned, "
        "paired.", "",
        "| K | kept after it | right | difference |", "|---|---:|---:|---:|",
        *accuracy(asker, options.data, options.questions, modules, options.batch), "",
        f"Speed-up of vision and prefill at {options.tokens:,} tokens of which {KEPT:.0%} stay, median and range of "
        f"{options.repeats} repeats, and the ratio of operations.", "",
        "| K | speed-up | ideal |", "|---|---:|---:|",
        *speed(options.tokens, options.repeats), "",
        "Measured on: " + ", ".join(f"{key} {value}" for key, value in facts(asker.model).items()) + ".",
    ]  # fmt: skip
    write_text(options.markdown, "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
