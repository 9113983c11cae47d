"""GlimpsePrune on the zoo model: accuracy and kept tokens per question type, beside baselines at equal budgets.

    python benchmarks/glimpse_accuracy.py --markdown glimpse_accuracy.md
    python benchmarks/glimpse_accuracy.py --module boxes=runs/boxes --module distillation=runs/distillation

Every module runs dynamically, capped, and once with a single token left: what the layers before have already carried
into the text. The reference is the first module's dynamic run: ViTCoP, Random and
Downsample get its *average over decoder layers*, and once more the share of tokens it leaves *after its pruning
layer*, which is what stays in the cache. The run continues from `--json` where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from resume import read_report
from rich.progress import track

from foveate import scenes, zoo
from foveate.core.method import Method
from foveate.evals.paired import difference
from foveate.files.atomic import write_text
from foveate.files.environment import facts
from foveate.inference.answer import Asker
from foveate.inference.weights import fingerprint
from foveate.methods import Downsample, GlimpsePrune, Random, ViTCoP

Record = dict[str, list[float]]


class Run:
    """The questions in batches, the model, and what has been measured so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.asker, self.path, self.markdown = Asker.load(options.model, 8), options.json, options.markdown
        model = self.asker.model
        self.modules = dict(pair.split("=", 1) for pair in options.module)
        self.cap, self.seeds, self.baselines = options.cap, options.seeds, options.baselines
        # rendered once, and in batches of one size as far as possible, so that little of them is padding
        samples = sorted(scenes.load(options.split, options.n), key=lambda sample: sample.image.size)
        size = options.batch
        self.batches = [samples[i : i + size] for i in range(0, len(samples), size)]
        self.types = [sample.type for sample in samples]
        about = {"model": options.model, "weights": fingerprint(model), "split": options.split, "n": options.n}
        about["modules"] = {name: fingerprint(GlimpsePrune(folder).glimpse) for name, folder in self.modules.items()}
        self.report = read_report(self.path, about, records={}) | {"facts": facts(model)}

    def measure(self, name: str, method: Method | None) -> Record:
        """Hits, tokens kept after the last stage and on average over the layers (fractions) per question."""
        if name in self.report["records"]:
            found: Record = self.report["records"][name]
            return found
        start = time.perf_counter()
        record: Record = {"hit": [], "kept": [], "average": []}
        for batch in track(self.batches, description=name):
            answers = self.asker.answer(self.asker.questions([(s.images, s.question) for s in batch]), method)
            record["hit"] += [float(given.text == s.answer) for given, s in zip(answers, batch, strict=True)]
            for given in answers:
                shares = [alive / given.visual_tokens for alive in given.prefill.alive_per_layer(given.row)]
                record["kept"].append(shares[-1])
                record["average"].append(mean(shares))
        self.report["records"][name] = record
        write_text(self.path, json.dumps(self.report))
        print(f"{name}: {mean(record['hit']):.1%}, kept {mean(record['kept']):.1%}, average over layers "
              f"{mean(record['average']):.1%}, {time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip
        return record

    def all(self) -> None:
        self.measure("unpruned", None)
        for name, folder in self.modules.items():
            self.measure(f"GlimpsePrune, {name}", GlimpsePrune(folder))
        reference = self.report["records"][f"GlimpsePrune, {next(iter(self.modules))}"]
        for name, folder in self.modules.items():
            self.measure(f"GlimpsePrune, {name}, at most {self.cap:.3f}", GlimpsePrune(folder, max_keep=self.cap))
            self.measure(f"GlimpsePrune, {name}, one token", GlimpsePrune(folder, threshold=1.0, min_keep=1))
        for column in self.baselines:
            keep = round(mean(reference[column]), 4)
            self.measure(f"ViTCoP({keep})", ViTCoP(keep=keep))
            self.measure(f"Downsample({keep})", Downsample(keep=keep))
            runs = [self.measure(f"Random({keep}, {seed})", Random(keep=keep, seed=seed)) for seed in range(self.seeds)]
            self.report["records"][f"Random({keep})"] = pooled(runs)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def pooled(runs: list[Record]) -> Record:
    """Mean over the seeds, question by question."""
    return {key: [mean(list(column)) for column in zip(*(run[key] for run in runs), strict=True)] for key in runs[0]}


def of(record: Record, key: str, types: list[str], kinds: tuple[str, ...]) -> list[float]:
    return [value for value, kind in zip(record[key], types, strict=True) if kind in kinds]


def retained(record: Record, base: Record, types: list[str], kinds: tuple[str, ...]) -> str:
    """Accuracy over the unpruned accuracy, with the standard error of the paired difference."""
    hits, whole = of(record, "hit", types, kinds), of(base, "hit", types, kinds)
    error = difference(hits, whole).error
    if not sum(whole):
        return "-"
    spread = "?" if error is None else f"{error / mean(whole):.1%}"
    return f"{mean(hits) / mean(whole):.1%} ± {spread}"


def markdown(report: dict[str, Any], types: list[str], command: str) -> str:
    kinds = tuple(kind for kind in scenes.TYPES if kind in types)
    local, records = tuple(kind for kind in kinds if scenes.NEEDS[kind] == "local"), report["records"]
    shown = [name for name in records if not (name.startswith("Random") and "," in name)]
    lines = [
        f"`{command}`; model `{report['about']['model']}`, first {len(types)} questions of `{report['about']['split']}`"
        ", greedy. " + ", ".join(f"{key} {value}" for key, value in report["facts"].items()) + ".",
        "",
        f"| setting | kept in the end | average over layers | {' | '.join(['all', *kinds])} | of unpruned, all "
        "| of unpruned, localised | kept, localised |",
        f"|{'---|' * (len(kinds) + 7)}",
    ]
    for name in shown:
        record = records[name]
        cells = [name, f"{mean(record['kept']):.1%}", f"{mean(record['average']):.1%}", f"{mean(record['hit']):.1%}"]
        cells += [f"{100 * mean(of(record, 'hit', types, (kind,))):.0f}" for kind in kinds]
        cells += [retained(record, records["unpruned"], types, group) for group in (kinds, local)]
        cells.append(f"{mean(of(record, 'kept', types, local)):.1%}")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Kept after the pruning layer, by type:", ""]
    lines += [f"| setting | {' | '.join(kinds)} |", f"|{'---|' * (len(kinds) + 1)}"]
    for name in [name for name in shown if name.startswith("Glimpse")]:
        shares = [f"{mean(of(records[name], 'kept', types, (kind,))):.1%}" for kind in kinds]
        lines.append(f"| {name} | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=zoo.DEFAULT)
    parser.add_argument("--module", action="append", metavar="NAME=FOLDER", help="default: the one beside the model")
    parser.add_argument("--split", default="test")
    parser.add_argument("--n", type=int, default=360)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--cap", type=float, default=1 / 9)
    parser.add_argument("--seeds", type=int, default=2, help="runs of Random")
    parser.add_argument("--baselines", nargs="*", choices=["average", "kept"], default=["average", "kept"])
    parser.add_argument("--json", type=Path, default=Path("glimpse_accuracy.json"))
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    options.module = options.module or [f"shipped={zoo.resolve(options.model)}/glimpse"]
    run = Run(options)
    run.all()
    if run.markdown:
        command = "python benchmarks/glimpse_accuracy.py " + shlex.join(sys.argv[1:])
        write_text(run.markdown, markdown(run.report, run.types, command))


if __name__ == "__main__":
    main()
