"""Exact match of a zoo model by question type, unpruned and with visual tokens withheld.

    python -m recipes.zoo.evaluate --model foveate/scenes-qwen2_5_vl --split test --n 1000
    python -m recipes.zoo.evaluate --split test --n 270 --keep 0.5 0.25 0.11 --oracle 0.1

Withheld tokens are masked as keys for every query from the first layer on, with the positions of the full
prompt: the same logits as if they had been dropped before the language model.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

import foveate.zoo as zoo
from foveate import scenes
from foveate.core.grid import Grid
from foveate.data.rendered import clip
from foveate.families import adapt
from foveate.files.atomic import write_text
from foveate.files.environment import facts
from foveate.inference.answer import Asker
from foveate.scenes import Sample

Inputs = dict[str, Tensor]
Choose = Callable[[Sample, Grid, Random], Tensor]


def media(sample: Sample) -> tuple[Any, ...]:
    """What a question shows: images, or one video."""
    return sample.images if sample.fps is None else (clip(sample),)


@dataclass
class Accuracy:
    """Right answers by type of one setting."""

    name: str
    hits: dict[str, list[bool]] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, samples: list[Sample], answers: list[str]) -> None:
        """Counts a batch."""
        for s, answer in zip(samples, answers, strict=True):
            self.hits.setdefault(s.type, []).append(answer == s.answer)

    def row(self) -> dict[str, float]:
        """Percentages: over all questions, then by type."""
        every = [hit for hits in self.hits.values() for hit in hits]
        parts = {name: self.hits[name] for name in scenes.NEEDS if name in self.hits}
        return {name: round(100 * sum(h) / len(h), 1) for name, h in {"all": every, **parts}.items()}


def random_share(share: float) -> Choose:
    """Keeps a random share of every image's tokens."""

    def choose(sample: Sample, grid: Grid, rng: Random) -> Tensor:
        keep = torch.zeros(grid.size, dtype=torch.bool)
        keep[rng.sample(range(grid.size), max(1, round(share * grid.size)))] = True
        return keep

    return choose


def oracle(share: float) -> Choose:
    """Keeps what the evidence boxes touch and a random share of the rest."""

    def choose(sample: Sample, grid: Grid, rng: Random) -> Tensor:
        keep = random_share(share)(sample, grid, rng).view(grid.h, grid.w)
        high, wide = sample.image.height / grid.h, sample.image.width / grid.w
        for x0, y0, x1, y1 in sample.boxes:
            rows = slice(max(0, int(y0 / high)), int((y1 - 1e-6) / high) + 1)
            keep[rows, max(0, int(x0 / wide)) : int((x1 - 1e-6) / wide) + 1] = True
        return keep.flatten()

    return choose


def withhold(model: Any, inputs: Inputs, samples: list[Sample], choose: Choose, seed: int) -> Inputs:
    """Inputs whose mask hides the visual tokens that `choose` does not keep; other images keep all."""
    visual = inputs["input_ids"] == model.config.image_token_id
    mask = inputs["attention_mask"].clone()
    grids = iter(shape.grids[0] for shape in adapt(model).incoming(inputs)["image"])
    for i, sample in enumerate(samples):
        parts = []
        for image in range(len(sample.images)):
            grid = next(grids)
            rng = Random(f"withhold:{seed}:{sample.seed}")
            parts.append(choose(sample, grid, rng) if image == sample.asked else torch.ones(grid.size).bool())
        mask[i, visual[i]] = torch.cat(parts).to(mask.dtype)
    return inputs | {"attention_mask": mask, "position_ids": _positions(model, inputs)}


def _positions(model: Any, inputs: Inputs) -> Tensor:
    """Positions of the unpruned prompt: M-RoPE with its text row `[4, B, L]`, else `[B, L]`."""
    mask = inputs["attention_mask"]
    flat = (mask.cumsum(-1) - 1).clamp_min(0)
    if "image_grid_thw" not in inputs:
        return flat
    kinds, grids = inputs["mm_token_type_ids"], inputs["image_grid_thw"]
    three, _ = model.model.get_rope_index(
        inputs["input_ids"], mm_token_type_ids=kinds, image_grid_thw=grids, attention_mask=mask
    )
    return torch.cat([flat[None], three])


def evaluate(
    asker: Asker,
    split: str,
    n: int,
    settings: dict[str, Choose | None],
    batch: int = 16,
    seed: int = 0,
    first: int = 0,
) -> list[Accuracy]:
    """Scores every setting on samples `first` to `first + n`, greedy by stock `generate`; `None` withholds nothing."""
    from rich.progress import track

    scores = {name: Accuracy(name) for name in settings}
    samples = scenes.load(split, n, first)
    for start in track(range(0, n, batch), description=f"{split} split"):
        some = list(samples[start : start + batch])
        inputs = asker.questions([(media(s), s.question) for s in some])
        for name, choose in settings.items():
            given = inputs if choose is None else withhold(asker.model, inputs, some, choose, seed)
            began = time.perf_counter()
            scores[name].add(some, [answer.text for answer in asker.answer(given)])
            scores[name].seconds += time.perf_counter() - began
    return list(scores.values())


def table(scores: list[Accuracy]) -> str:
    """A Markdown table, a row for each setting."""
    rows = {score.name: score.row() for score in scores}
    columns = list(next(iter(rows.values())))
    lines = ["| visual tokens | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(f"{row[c]:.1f}" for c in columns) + " |" for name, row in rows.items()]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=zoo.DEFAULT)
    parser.add_argument("--split", default="test", choices=[s for s in scenes.SPLITS if s != "train"])
    parser.add_argument("--n", type=int, default=scenes.splits.LENGTH)
    parser.add_argument("--first", type=int, default=0, help="index of the first sample")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=float, nargs="*", default=[], help="random shares of visual tokens to keep")
    parser.add_argument("--oracle", type=float, help="evidence boxes and this random share")
    parser.add_argument("--out", type=Path, help="also write the numbers here, as JSON")
    args = parser.parse_args(argv)
    if args.split == "video" and (args.keep or args.oracle is not None):
        parser.error("tokens of videos are not withheld here; benchmarks/accuracy.py prunes them")
    settings: dict[str, Choose | None] = {"everything": None}
    settings |= {f"random {100 * share:g} %": random_share(share) for share in args.keep}
    if args.oracle is not None:
        settings[f"evidence + random {100 * args.oracle:g} %"] = oracle(args.oracle)
    asker = Asker.load(args.model, 8)
    scores = evaluate(asker, args.split, args.n, settings, args.batch, args.seed, args.first)
    print(table(scores))
    rows = {s.name: s.row() | {"seconds": round(s.seconds, 1)} for s in scores}
    report = {name: getattr(args, name) for name in ("model", "split", "first", "n", "batch", "seed")}
    report |= {"exact match": rows, **facts(asker.model)}
    print(json.dumps(report))
    if args.out:
        write_text(args.out, json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
