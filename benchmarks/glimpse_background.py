"""GlimpsePrune with a background on the zoo model: its setting is chosen on `val`, what it does is reported on `test`.

    OMP_NUM_THREADS=1 python benchmarks/glimpse_background.py --seeds 1 --markdown docs/glimpse_background.md

On `val` the module and the background share `--limit` of the visual tokens in several ways: a cap for the module's
tokens beside a background, and both with a spread. The most accurate setting that leaves at most so many is taken (of
two alike, the one that leaves fewer). On `test` it stands beside the published forms, beside other choices of as many
tokens after the same layer (at random; by diversity alone; one token or none), and beside other methods at the share
that it leaves and at its average over the layers. Both runs go on from `--out` where they were stopped.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from glimpse_accuracy import Record, Run, mean, of, pooled, retained
from torch import Tensor

from foveate import scenes, zoo
from foveate.core.budget import part
from foveate.core.method import Method
from foveate.core.view import View
from foveate.evals.paired import difference
from foveate.files.atomic import write_text
from foveate.glimpse import GlimpseModule, load_module
from foveate.methods import DivPrune, Downsample, GlimpsePrune, Random, ViTCoPDiverse

Setting = dict[str, float | int]
"""Fields of `GlimpsePrune`."""
GRID: list[Setting] = [
    {"max_keep": 0.04, "background": 0.06},
    *({"spread": spread, "portion": 0.3, "background": 0.068} for spread in (2, 3, 4)),
    {"spread": 4, "portion": 0.5, "background": 0.04},
]
"""What may share a tenth."""
LATER = (7, 8)
"""Pruning after these layers, not the module's K: reads more, and tells what K costs."""
UNPRUNED, DYNAMIC, CAPPED = "unpruned", "GlimpsePrune", "GlimpsePrune, at most 0.111"


@dataclass(frozen=True, eq=False)
class AnyTokens(GlimpsePrune):
    """GlimpsePrune's pruning with tokens drawn at random in place of the module's, anew for every question."""

    share: float | int = 1
    draw: torch.Generator = field(default_factory=torch.Generator, kw_only=True)

    def decide(self, view: View) -> Tensor:
        count = self.share if isinstance(self.share, int) else max(1, part(self.share, len(view)))
        return torch.randperm(len(view), generator=self.draw)[:count].sort().values.to(view.device)


def named(module: str | GlimpseModule, setting: Setting) -> tuple[str, Method]:
    return ", ".join(f"{key}={value}" for key, value in setting.items()), GlimpsePrune(module, **setting)


class Study:
    """One model and module on both splits."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.module, self.limit, self.seeds = options.module, options.limit, options.seeds
        parts = {split: options.out / f"{split}.json" for split in ("val", "test")}
        common = {"module": [f"shipped={options.module}"], "markdown": None, "cap": 1 / 9, "baselines": []}
        self.runs = {
            split: Run(argparse.Namespace(**vars(options) | common | {"split": split, "json": path, "n": n}))
            for (split, path), n in zip(parts.items(), (options.val, options.n), strict=True)
        }
        self.order: dict[str, list[str]] = {split: [] for split in parts}

    def measure(self, split: str, name: str, method: Method | None) -> Record:
        self.order[split].append(name)
        return self.runs[split].measure(name, method)

    def references(self, split: str) -> None:
        """Unpruned and as published."""
        self.measure(split, UNPRUNED, None)
        self.measure(split, DYNAMIC, GlimpsePrune(self.module))
        self.measure(split, CAPPED, GlimpsePrune(self.module, max_keep=1 / 9))

    def later(self, setting: Setting) -> None:
        """The chosen setting behind later layers."""
        for layer in LATER:
            module = load_module(self.module)
            module.config = replace(module.config, reduce_layer=layer)
            name, method = named(module, setting)
            self.measure("test", f"{name}, after layer {layer}", method)

    def chosen(self) -> Setting:
        """The best of the grid by `val`."""
        self.references("val")
        found = []
        for number, setting in enumerate(GRID):
            record = self.measure("val", *named(self.module, setting))
            if mean(record["kept"]) <= self.limit:
                found.append((mean(record["hit"]), -mean(record["kept"]), -number))
        return GRID[-max(found)[2]]

    def test(self, setting: Setting) -> str:
        """Everything on `test`; the chosen setting's name."""
        self.references("test")
        name, method = named(self.module, setting)
        best = self.measure("test", name, method)
        left, average = (round(mean(best[column]), 4) for column in ("kept", "average"))
        if setting != GRID[0]:
            self.measure("test", *named(self.module, GRID[0]))
        self.later(setting)
        alone = GlimpsePrune(self.module, threshold=1.0, max_keep=1, min_keep=1, background=left)
        self.measure("test", f"after the same layer: diversity ({left})", alone)
        self.mean_of(f"after the same layer: at random ({left})", lambda seed: self.any_tokens(left, seed))
        self.measure("test", "one token: the module's likeliest", GlimpsePrune(self.module, 1.0, min_keep=1))
        self.mean_of("one token: at random", lambda seed: self.any_tokens(1, seed))
        self.measure("test", "no token", GlimpsePrune(self.module, threshold=1.0, min_keep=0))
        for keep in (left, average):
            for kind in (ViTCoPDiverse, DivPrune, Downsample):
                self.measure("test", f"{kind.__name__}({keep})", kind(keep=keep))
            if keep == left:
                self.mean_of(f"Random({keep})", lambda seed, keep=keep: Random(keep=keep, seed=seed))
        return name

    def any_tokens(self, share: float | int, seed: int) -> Method:
        return AnyTokens(self.module, share=share, draw=torch.Generator().manual_seed(seed))

    def mean_of(self, name: str, make: Any) -> None:
        """A setting with a seed, averaged question by question."""
        run = self.runs["test"]
        each = [run.measure(f"{name}, seed {seed}", make(seed)) for seed in range(self.seeds)]
        run.report["records"][name] = pooled(each)
        self.order["test"].append(name)


def shown(record: Record, other: Record) -> str:
    """Paired difference in points."""
    found = difference(record["hit"], other["hit"])
    return f"{100 * found.mean:+.1f} ± {100 * (found.error or 0):.1f}"


def table(run: Run, order: list[str], best: str, against: str) -> list[str]:
    kinds = tuple(kind for kind in scenes.TYPES if kind in run.types)
    records = run.report["records"]
    head = ["setting", "left", "average", "correct", "of unpruned", f"- {against}", *(f"`{kind}`" for kind in kinds)]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name in order:
        record = records[name]
        title = f"**{name}**" if name == best else name
        cells = [title, *(f"{100 * mean(record[key]):.1f}" for key in ("kept", "average", "hit"))]
        cells.append(retained(record, records[UNPRUNED], run.types, kinds))
        other = best if against == "chosen" else against
        cells.append("" if name == other else shown(record, records[other]))
        cells += [f"{100 * mean(of(record, 'hit', run.types, (kind,))):.0f}" for kind in kinds]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


PAGE = """\
# GlimpsePrune with a background

Written by `{command}`. Greedy answers, exact match, in
percent; `{model}` (weights `{weights}`), the shipped module (weights `{module}`), first {first}
questions of `scenes:val` and {n} of `scenes:test`, batches of {batch}.

*Left*: visual tokens after the last stage, for GlimpsePrune also in every layer's cache; *average*: visual tokens per
decoder layer in the prefill; both in percent, means over questions. *Of unpruned*: correct over correct unpruned.
± is the standard error of the paired difference. What is drawn at random is the mean of {seeds} seed(s), a question's
mean counting once. Why, and what follows: [glimpse.md](glimpse.md#with-a-background).

## Chosen on `scenes:val`

Module and background share {limit:.0%}: a cap (`max_keep`) for the module's tokens and a background beside them, or
both chosen together (`spread`, with a `portion` of what the module marks). Taken is the most accurate setting that
leaves at most so much, pruned after the module's own layer K.

{val}

## Reported on `scenes:test`

*After the same layer* and *one token* prune where GlimpsePrune does, after layer K; after later layers less of the
prefill is saved. Other methods come at the share that the chosen setting leaves (they then read as few tokens in nearly
all layers), some also at its average over the layers (which GlimpsePrune spends up to layer K, nearly all of it).

{test}

**{verdict}**

Measured on: {facts}.
"""


def page(study: Study, best: str, options: argparse.Namespace) -> str:
    test, about = study.runs["test"], study.runs["test"].report["about"]
    records = test.report["records"]
    kinds = tuple(kind for kind in scenes.TYPES if kind in test.types)
    share = sum(records[best]["hit"]) / sum(records[UNPRUNED]["hit"])
    reached = "reached" if share >= 0.99 and mean(records[best]["kept"]) <= study.limit else "missed"
    return PAGE.format(
        command=f"python {shlex.join(sys.argv)}", model=about["model"], weights=about["weights"], n=about["n"],
        first=options.val, module=about["modules"]["shipped"], batch=options.batch,
        seeds=study.seeds, limit=study.limit,
        val="\n".join(table(study.runs["val"], study.order["val"], best, DYNAMIC)),
        test="\n".join(table(test, study.order["test"], best, "chosen")),
        verdict=f"99 % of the unpruned accuracy at {study.limit:.0%} of the tokens or less is {reached}: "
        f"{retained(records[best], records[UNPRUNED], test.types, kinds)} at {mean(records[best]['kept']):.1%}.",
        facts=", ".join(f"{key} {value}" for key, value in test.report["facts"].items()),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=zoo.DEFAULT)
    parser.add_argument("--module", help="default: the one beside the model")
    parser.add_argument("--n", type=int, default=270, help="questions of `test`")
    parser.add_argument("--val", type=int, default=540, help="questions of `val`, 1,000 at most")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--limit", type=float, default=0.1, help="share of tokens left, at most")
    parser.add_argument("--seeds", type=int, default=3, help="of what is drawn at random")
    parser.add_argument("--out", type=Path, default=Path("runs/glimpse-background"))
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    options.module = options.module or f"{zoo.resolve(options.model)}/glimpse"
    study = Study(options)
    best = study.test(study.chosen())
    if options.markdown:
        write_text(options.markdown, page(study, best, options))


if __name__ == "__main__":
    main()
