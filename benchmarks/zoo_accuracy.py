"""Accuracy of every method on the built-in scenes, by question type and budget, against Random and Downsample.

    python benchmarks/zoo_accuracy.py --n 180 --seeds 2 --json benchmarks/results/methods_accuracy.json \
      --markdown docs/methods_accuracy.md

Greedy answers, exact match, left-padded batches, the first `--n` questions of a held-out split. `keep` is the average
number of visual tokens per decoder layer over the unpruned number, alike for every method; a budget that a method
cannot reach on this model is left out and said so. Random is averaged over `--seeds` subsets. Interrupted runs continue
from the JSON file if model and questions are the same.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from resume import read_report
from rich.progress import track

from foveate import scenes, zoo
from foveate.core.method import Method
from foveate.errors import ConfigurationError
from foveate.families import adapt
from foveate.files.atomic import write_text
from foveate.files.environment import facts
from foveate.inference.answer import Asker
from foveate.inference.weights import fingerprint
from foveate.methods import Compose, FasterVLM, FastV, PruMerge, Random, registry

KEEPS = {"1/3": 1 / 3, "2/9": 2 / 9, "1/9": 1 / 9, "1/20": 1 / 20}
BASELINES = ("random", "downsample")


def settings(seeds: int, keeps: list[str], info: Any) -> tuple[dict[str, Method | None], dict[str, str]]:
    """What to run by name (`method keep` or `method keep seed`), and why a setting cannot be run."""
    made: dict[str, Method | None] = {"unpruned": None}
    refused: dict[str, str] = {}
    for label, keep in ((label, KEEPS[label]) for label in keeps):
        for name, kind in registry().items():
            todo: dict[str, Any] = {f"{name} {label}": lambda kind=kind, keep=keep: kind(keep=keep)}
            if name == "random":
                todo = {f"{name} {label} {s}": lambda keep=keep, s=s: Random(keep=keep, seed=s) for s in range(seeds)}
            elif name == "compose":
                todo = {f"fastervlm+fastv {label}": lambda keep=keep: Compose(FasterVLM(), FastV(), keep=keep)}
            elif name == "prumerge":
                todo[f"prumerge+ {label}"] = lambda keep=keep: PruMerge(keep=keep, plus=True)
            elif name == "glimpse_prune":
                continue  # without a trained module it would only measure random weights
            for key, make in todo.items():
                try:
                    method = make()
                    method.stages(info)
                    made[key] = method
                except ConfigurationError as error:
                    refused[key] = str(error)
    return made, refused


def run(options: argparse.Namespace, asker: Asker) -> dict[str, Any]:
    model = asker.model
    made, refused = settings(options.seeds, options.keeps, adapt(model).info)
    samples = list(track(scenes.load(options.split, options.n), description="scenes", total=options.n))
    batches = [samples[i : i + options.batch] for i in range(0, len(samples), options.batch)]
    inputs = [asker.questions([(s.images, s.question) for s in batch]) for batch in batches]
    about = {"model": options.model, "weights": fingerprint(model), "split": options.split, "n": options.n}
    report = read_report(options.json, about, hits={}, kept={}) | {"facts": facts(model), "refused": refused}
    report["types"] = [sample.type for sample in samples]
    for name in track([name for name in made if name not in report["hits"]], description="settings"):
        start, hits, kept = time.perf_counter(), [], 0.0
        for batch, prompt in zip(batches, inputs, strict=True):
            answers = asker.answer(prompt, made[name])
            hits += [int(found.text == sample.answer) for found, sample in zip(answers, batch, strict=True)]
            kept += answers[0].prefill.keep_ratio * len(batch) / len(samples)
        report["hits"][name] = hits
        report["kept"][name] = kept
        print(f"{name:24} {100 * sum(hits) / len(hits):5.1f} %  kept {kept:.3f}  {time.perf_counter() - start:.0f} s")
        write_text(options.json, json.dumps(report))
    return report


def pooled(report: dict[str, Any], key: str) -> list[float] | None:
    """Right or wrong for each question; the share of right ones where there are several seeds."""
    runs = [hits for name, hits in report["hits"].items() if name == key or name.startswith(f"{key} ")]
    return [sum(column) / len(runs) for column in zip(*runs, strict=True)] if runs else None


def percent(hits: list[float], types: list[str], kind: str | None = None) -> float:
    own = [hit for hit, type_ in zip(hits, types, strict=True) if kind in (None, type_)]
    return 100 * sum(own) / len(own)


def difference(a: list[float], b: list[float]) -> tuple[float, float]:
    """Mean of the paired differences and its standard error, in points."""
    pairs = [x - y for x, y in zip(a, b, strict=True)]
    mean = sum(pairs) / len(pairs)
    spread = sum((p - mean) ** 2 for p in pairs) / (len(pairs) - 1)
    return 100 * mean, 100 * math.sqrt(spread / len(pairs))


def markdown(report: dict[str, Any], command: str) -> str:
    types, found, about = report["types"], report["facts"], report["about"]
    kinds = [kind for kind in scenes.TYPES if kind in types]
    head = ["method", "kept", "all", *kinds, "- random", "- downsample"]
    unpruned = pooled(report, "unpruned") or []
    by_type = ", ".join(f"{kind} {percent(unpruned, types, kind):.0f}" for kind in kinds)
    lines = [
        "# Accuracy of the methods on the built-in scenes",
        "",
        f"`{command}`: model `{about['model']}` (weights `{about['weights']}`), the first {about['n']} questions "
        f"of the `{about['split']}` split, greedy, exact match in percent. "
        f"Unpruned: **{percent(unpruned, types):.1f}** ({by_type}).",
        "",
        "The last two columns are paired differences to Random (mean of its seeds) and Downsample at the same budget, "
        "with the standard error. *kept* is the measured average of visual tokens per layer. A tiny model that knows "
        "these scenes only says little about large models and photographs: it shows whether a method works at all.",
        "",
        "Measured on: " + ", ".join(f"{key} {value}" for key, value in found.items()) + ".",
    ]
    for label in KEEPS:
        if any(pooled(report, f"{name} {label}") is None for name in BASELINES):
            continue  # an unfinished run
        lines += ["", f"## keep {label}", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        lines += [*table(report, label, kinds), "", *remarks(report, label)]
    return "\n".join(lines) + "\n"


def names(report: dict[str, Any], label: str) -> list[str]:
    keys = {name.split(" ")[0] for name in report["hits"] if f" {label}" in name and name.split(" ")[1] == label}
    return sorted(keys, key=lambda key: -sum(pooled(report, f"{key} {label}") or []))


def table(report: dict[str, Any], label: str, kinds: list[str]) -> list[str]:
    types, lines = report["types"], []
    baselines = [pooled(report, f"{name} {label}") or [] for name in BASELINES]
    for key in names(report, label):
        hits = pooled(report, f"{key} {label}") or []
        ratios = [kept for name, kept in report["kept"].items() if f"{name} ".startswith(f"{key} {label} ")]
        cells = [key, f"{sum(ratios) / len(ratios):.3f}", f"**{percent(hits, types):.1f}**"]
        cells += [f"{percent(hits, types, kind):.0f}" for kind in kinds]
        for name, baseline in zip(BASELINES, baselines, strict=True):
            mean, error = difference(hits, baseline)
            cells.append("" if key == name else f"{mean:+.1f} ± {error:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def remarks(report: dict[str, Any], label: str) -> list[str]:
    lines = []
    for name in BASELINES:
        baseline = pooled(report, f"{name} {label}") or []
        rest = [key for key in names(report, label) if key not in BASELINES]
        below = {key: difference(pooled(report, f"{key} {label}") or [], baseline) for key in rest}
        clear = [key for key, (mean, error) in below.items() if mean < -2 * error]
        maybe = [key for key, (mean, error) in below.items() if -2 * error <= mean < 0]
        lines.append(
            f"Worse than {name} by more than two standard errors: {', '.join(clear) or 'none'}; below it, but within "
            f"two standard errors: {', '.join(maybe) or 'none'}.\n"
        )
    impossible = sorted({key.split(" ")[0] for key in report["refused"] if key.split(" ")[1] == label})
    if impossible:
        lines.append(f"Cannot keep so little on a model of this depth: {', '.join(impossible)}.\n")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=zoo.DEFAULT)
    parser.add_argument("--split", default="test")
    parser.add_argument("--n", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--keeps", nargs="*", choices=list(KEEPS), default=list(KEEPS))
    parser.add_argument("--json", type=Path, default=Path("methods_accuracy.json"))
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    report = run(options, Asker.load(options.model, 8))
    if options.markdown:
        command = "python benchmarks/zoo_accuracy.py " + shlex.join(sys.argv[1:])
        write_text(options.markdown, markdown(report, command))


if __name__ == "__main__":
    main()
