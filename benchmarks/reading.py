"""Attention received, read from fewer and fewer queries: what is kept all the same, and what it costs beside the tower.

    python benchmarks/reading.py --markdown docs/reading.md

Agreement: validation scenes, enlarged, through the built-in Qwen2.5-VL model's tower; the share of the tokens that
receive most by all queries which are found by evenly spaced ones. Cost: time of the taps over the rest of the tower's,
on a random model of middle size, fastest of the repeats.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText

import foveate
from foveate.core.method import BEFORE_LLM, Method, Stage
from foveate.core.selection import Choice, Selection
from foveate.core.view import ModelInfo, Tap, View
from foveate.data.rendered import Scenes
from foveate.families.presets import PRESETS, build, configuration
from foveate.families.prompts import random_prompt
from foveate.files.atomic import write_text
from foveate.files.environment import facts
from foveate.inference.answer import Asker
from foveate.methods import FasterVLM

QUERIES = (128, 256, 512, 1024, 2048, 4096)
SHARES = (3, 9)


@dataclass(frozen=True, eq=False)
class Listen(Method):
    """Drops nothing and notes the attention received, from several numbers of queries."""

    name = "listen"
    found: dict[int | None, Tensor] = field(default_factory=dict, kw_only=True)

    @property
    def prunes(self) -> bool:
        return True

    def stages(self, info: ModelInfo) -> list[Stage]:
        return [Stage(BEFORE_LLM)]

    def taps(self, info: ModelInfo) -> tuple[Tap, ...]:
        return tuple(Tap("received", None, queries) for queries in (None, *QUERIES))

    def select(self, view: View) -> Choice:
        self.found.update({tap.queries: view.tap(tap) for tap in self.taps(view.info)})
        return Selection.everything(len(view), view.device)


def shared(some: Tensor, all_: Tensor, share: int) -> float:
    """How much of the largest `1 / share` of `all_` is among the largest of `some`."""
    count = len(all_) // share
    return float(torch.isin(some.topk(count).indices, all_.topk(count).indices).float().mean())


def agreement(asker: Asker, side: int, images: int) -> Iterator[str]:
    """A row of the table for every number of queries below the patches of a picture."""
    size, seen = asker.processor.image_processor.size, dict[tuple[int, int], list[float]]()
    size["longest_edge"] = max(size["longest_edge"], side * side)
    for row in Scenes.load("val", images):
        picture = row.images[0].resize((side, side), Image.Resampling.BICUBIC)
        method = Listen(keep=0.999)
        asker.answer(asker.questions([([picture], row.question)]), method)
        whole = method.found[None]
        for queries in QUERIES:
            for share in SHARES:
                seen.setdefault((queries, share), []).append(shared(method.found[queries], whole, share))
    patches = 4 * len(whole)
    for queries in (queries for queries in QUERIES if queries < patches):
        cells = [f"{statistics.mean(v):.2f} ± {_error(v):.2f}" for v in (seen[queries, share] for share in SHARES)]
        yield f"| {side} | {patches:,} | {queries:,} | {' | '.join(cells)} |"


def _error(values: Sequence[float]) -> float:
    return float(statistics.stdev(values) / len(values) ** 0.5)


def published_tower() -> Any:
    """Qwen2.5-VL-3B's vision tower with random weights, before a language model of one layer."""
    preset = PRESETS["qwen2.5-vl-3b"]
    config = configuration(preset, preset.tokens)
    config.text_config.update({"num_hidden_layers": 1, "layer_types": ["full_attention"], "vocab_size": 151936})
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()


def cost(model: Any, tokens: int, repeats: int, asked: Sequence[int] = QUERIES) -> Iterator[str]:
    """A row of the table for every number of queries: time of reading over the tower's own."""
    inputs = random_prompt(model, tokens)
    spent: dict[int, list[tuple[float, float]]] = {}
    for _ in range(repeats):
        for queries in asked:
            with foveate.prune(model, FasterVLM(keep=1 / 9, queries=queries)) as trace, torch.inference_mode():
                model(**inputs, use_cache=True, logits_to_keep=1)
            reading = trace.last.tapping.ms
            spent.setdefault(queries, []).append((reading, trace.last.vision.ms - reading))
    tower = min(rest for found in spent.values() for _, rest in found)
    for queries, found in spent.items():
        fastest = min(reading for reading, _ in found)
        blocks = len(model.model.visual.blocks)
        yield f"| {blocks} | {tokens:,} | {4 * tokens:,} | {queries:,} | {fastest:.0f} ms | {fastest / tower:.1%} |"


def costs(options: argparse.Namespace) -> Iterator[str]:
    for tokens in options.tokens:
        yield from cost(build("mid-qwen2.5-vl", tokens), tokens, options.repeats)
    if options.published:
        model = published_tower()
        for tokens in options.published:
            yield from cost(model, tokens, 1, [256, 1024])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="*", default=[448, 672, 1344])
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--tokens", type=int, nargs="*", default=[576, 2304])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--published", type=int, nargs="*", default=[576, 2304], metavar="TOKENS",
                        help="tokens at which a tower of published size is read once")  # fmt: skip
    parser.add_argument("--markdown", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    asker = Asker.load("foveate/scenes-qwen2_5_vl", 1)
    lines = [
        "# Attention received, from how many queries?", "", f"Written by `python {shlex.join(sys.argv)}`.", "",
        "Where the vision tower has no class token, methods rank by the attention that a patch receives from the "
        f"others. `queries` says how many, evenly spaced, are asked: {Tap.queries:,} by default, all with None.", "",
        "## What is found all the same", "",
        f"Share of the third and ninth of tokens that receive most from all patches, {options.images} validation "
        "scenes resized, built-in Qwen2.5-VL model, mean and standard error.", "",
        "| side, px | patches | queries | third | ninth |", "|---:|---:|---:|---:|---:|",
        *(line for side in options.sides for line in agreement(asker, side, options.images)), "",
        "## What it costs", "",
        "Time of reading, and that over the rest of the tower's (random weights, float32, one thread). 6 blocks: "
        f"`mid-qwen2.5-vl`, the fastest of {options.repeats} each, since other work ran beside; 32: the tower of "
        "Qwen2.5-VL-3B and 7B, run once each. One block is read in both.", "",
        "| blocks | tokens | patches | queries | reading | of the tower |", "|---:|---:|---:|---:|---:|---:|",
        *costs(options), "",
        "With 1,024 queries the reading is exact up to 448 pixels a side.", "",
        "Measured on: " + ", ".join(f"{key} {value}" for key, value in facts(asker.model).items()) + ".",
    ]  # fmt: skip
    write_text(options.markdown, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
