"""How long every method takes to select, and what share of the prefill that is.

    python benchmarks/methods.py                                      # two mid-size random models, CPU
    python benchmarks/methods.py --tokens 16384 --models mid-llava --repeats 1    # about half an hour on two cores
    python benchmarks/methods.py --count                              # operations only, half a minute
    python benchmarks/methods.py --models llava-1.5-7b --dtype bfloat16 --device cuda

Selecting is everything between a stage's entry and the re-packed batch: reading keys and attention rows, the method's
own mathematics and the engine's book-keeping. Taps in the vision tower are not part of it, nor is the tower part of the
prefill. Both shares are given: of the unpruned prefill and of the method's own, pruned one. All methods of one model
run interleaved; numbers are medians over repeats. A run adds to what `--json` holds already. Methods that cannot reach
`--keep` on the model run with their default budget, which is then shown.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

import foveate
from foveate.bench.operations import Counts, counting
from foveate.core.method import Method
from foveate.engine.checks import check
from foveate.errors import ConfigurationError
from foveate.families import adapt
from foveate.families.presets import build
from foveate.families.prompts import random_prompt
from foveate.files.atomic import write_text
from foveate.files.environment import facts
from foveate.methods import registry


def configured(name: str, keep: float, model: Any) -> tuple[Method, str]:
    """The method and its budget as text."""
    kind: Any = registry()[name]
    try:
        method = kind.example(keep, model) if hasattr(kind, "example") else kind(keep=keep)
        check(adapt(model), method)
    except ConfigurationError:
        method = kind()
        return method, f"{method.budget.plain} (default)"
    return method, f"{keep:.3f}"


def prefill(model: Any, inputs: dict[str, Any], method: Method | None) -> dict[str, float]:
    """Milliseconds of one prefill after the vision tower, and of selecting in it."""
    with foveate.prune(model, method) as trace, torch.inference_mode():
        model(**inputs, use_cache=True, logits_to_keep=1)
    last = trace.last
    return {"prefill_ms": last.prefill.ms, "select_ms": last.selecting.ms, "average_keep": last.keep_ratio}


def counted(model: Any, inputs: dict[str, Any], method: Method | None, stock: bool = False) -> Counts:
    """Operations and waits of one prefill, the vision tower's included."""
    with nullcontext() if stock else foveate.prune(model, method), torch.no_grad(), counting() as counts:
        model(**inputs, use_cache=True, logits_to_keep=1)
    return counts


def counts(name: str) -> list[dict[str, Any]]:
    """What every method's prefill asks of torch beyond stock code's, on a small image; the same on any machine."""
    model = build(name, COUNTED_TOKENS)
    inputs = random_prompt(model, COUNTED_TOKENS)
    stock, rows = counted(model, inputs, None, stock=True), []
    for key in registry():
        found = counted(model, inputs, configured(key, 1 / 9, model)[0])
        more = {kind: getattr(found, kind) - getattr(stock, kind) for kind in ("operations", "views", "waits")}
        rows.append({"model": name, "method": key, **more})
    return rows


def measure(name: str, tokens: int, names: list[str], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    model = build(name, tokens, getattr(torch, options.dtype), options.device)
    inputs = random_prompt(model, tokens)
    methods = {key: configured(key, options.keep, model) for key in names}
    stock: list[float] = []
    seen: dict[str, list[dict[str, float]]] = {key: [] for key in methods}
    for repeat in range(options.repeats + options.warmup):
        start = time.perf_counter()
        plain = prefill(model, inputs, None)["prefill_ms"]
        for key, (method, _) in methods.items():
            found = prefill(model, inputs, method)
            if repeat >= options.warmup:
                seen[key].append(found)
        if repeat >= options.warmup:
            stock.append(plain)
        print(f"# {name}, {tokens} tokens, round {repeat}: {time.perf_counter() - start:.0f} s", flush=True)
    for key, (_, budget) in methods.items():
        select = statistics.median(found["select_ms"] for found in seen[key])
        yield {
            "model": name,
            "visual_tokens": tokens,
            "method": key,
            "keep": options.keep,
            "dtype": options.dtype,
            "device": options.device,
            "threads": torch.get_num_threads(),
            "budget": budget,
            "average_keep": statistics.median(found["average_keep"] for found in seen[key]),
            "select_ms": select,
            "unpruned_prefill_ms": statistics.median(stock),
            "share_of_unpruned_prefill": select / statistics.median(stock),
            "share_of_own_prefill": statistics.median(f["select_ms"] / f["prefill_ms"] for f in seen[key]),
            "select_ms_of_each_repeat": [found["select_ms"] for found in seen[key]],
        }
    yield {"facts": facts(model)}


COUNTED_TOKENS = 144
"""Visual tokens of the prefill whose operations are counted."""

REASONS = {
    "divprune": "its published rule is kept to: similarities of full width, and a start that compares many pairs",
    "cdpruner": "greedy MAP inference takes one step per kept token, each after the one before",
    "vispruner": "every round of de-duplication compares all tokens that are left",
    "glimpse_prune": "its predictor is a small transformer over all visual tokens",
    "vitcop": "clustering compares all pairs of the tokens that its first stage keeps; on Qwen2.5-VL: max-min",
    "vitcop_diverse": "max-min diversity compares many tokens with those that its first stage keeps, three in ten",
    "tome": "bipartite matching compares every second token with all others, once a round",
    "vscan": "merging compares every token that goes with all that stay",
    "prumerge": "merging compares every token that goes with all that stay",
    "sparsevlm": "it computes a rank of the attention at three layers",
}
"""Why a method takes over 10 % of a prefill: the methods are sequential or quadratic by definition."""


MAX_MIN = "\n" + (Path(__file__).parent / "results" / "max_min.md").read_text(encoding="utf-8").strip()
"""What benchmarks/max_min.py found, in words."""

DEFAULTS_CHANGED = "2026-11-26T01:42"
"""When these methods began to follow the published code by default."""
CHANGED = ("cdpruner", "prumerge", "sparsevlm", "tome", "visionzip", "vispruner", "vscan")


def outdated(report: dict[str, Any]) -> list[str]:
    """Which rows are of what a method did before its default changed."""
    if all(found["measured"] >= DEFAULTS_CHANGED for found in report["facts"]):
        return []
    names = ", ".join(f"`{name}`" for name in CHANGED)
    return [
        f"**Measured, in part at least, before {DEFAULTS_CHANGED[:10]}**, when these methods began to follow the "
        f"published code by default: {names}. Their rows are of what they did before; delete them from the JSON file "
        "and run the command again to measure them anew. All other rows stand.",
        "",
    ]


def explained(report: dict[str, Any]) -> list[str]:
    """A line about each method that is over 10 % of its own prefill."""
    over: dict[str, list[str]] = {}
    for row in report["rows"]:
        if row["share_of_own_prefill"] > 0.1:
            where = f"{row['model']} at {row['visual_tokens']:,}"
            over.setdefault(row["method"], []).append(where + (", one thread" if row["threads"] == 1 else ""))
    heads = ["", "Over 10 % of their own pruned prefill:", ""] if over else []
    return heads + [f"- `{name}` ({'; '.join(found)}): {REASONS.get(name, '?')}." for name, found in over.items()]


def markdown(report: dict[str, Any]) -> str:
    """The table of a report, with what it was measured on."""
    lines = [
        "# What selecting takes",
        "",
        *outdated(report),
        f"Written by `{'`, then `'.join(report['commands'])}` (medians). Selecting is all work between a stage's entry "
        "and the re-packed batch; taps in the vision tower are not part of it, nor is the tower part of the prefill. "
        "The first share is of the unpruned prefill, the second of the method's own, pruned one. `glimpse_prune` has a "
        "module with random weights. A load average above the number of cores means that other work ran at the same "
        "time: such times are long and noisy, their ratios less so.",
        "",
        "| model | visual tokens | threads | method | keep | selecting, ms | of unpruned prefill | of own prefill |",
        "|---|---:|---:|---|---|---:|---:|---:|",
    ]
    lines += [
        f"| {row['model']} | {row['visual_tokens']} | {row['threads']} | {row['method']} | {row['budget']} | "
        f"{row['select_ms']:.1f} | "
        f"{row['share_of_unpruned_prefill']:.1%} | {row['share_of_own_prefill']:.1%} |"
        for row in report["rows"]
    ]
    lines += [*explained(report), MAX_MIN, *counts_table(report)]
    for found in report["facts"]:
        lines += ["", "Measured on: " + ", ".join(f"{key} {value}" for key, value in found.items()) + "."]
    return "\n".join(lines) + "\n"


def counts_table(report: dict[str, Any]) -> list[str]:
    """Operations and waits of every method, a column a model."""
    rows = report.get("counts", [])
    models = list(dict.fromkeys(row["model"] for row in rows))
    if not rows:
        return []
    lines = [
        "", "## Counted", "",
        f"Operations that a prefill of one image of {COUNTED_TOKENS} tokens issues beyond stock code's, reading the "
        "tower included, the views beside them, for which nothing is launched, and how often the host waits for the "
        "device beyond that. Counted by torch's dispatcher: the numbers do not depend on the machine, but on the "
        "number of rounds that a choice takes.", "",
        "| method | " + " | ".join(f"{name}: operations | views | waits" for name in models) + " |",
        "|---" + "|---:|---:|---:" * len(models) + "|",
    ]  # fmt: skip
    for key in dict.fromkeys(row["method"] for row in rows):
        cells = [f"{row['operations']} | {row['views']} | {row['waits']}" for row in rows if row["method"] == key]
        lines.append(f"| {key} | {' | '.join(cells)} |")
    return lines


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["mid-llava", "mid-qwen2.5-vl"])
    parser.add_argument("--tokens", nargs="*", type=int, default=[576, 2304])
    parser.add_argument("--methods", nargs="*", choices=list(registry()), help="default: all")
    parser.add_argument("--keep", type=float, default=1 / 9)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", action="store_true", help="only count operations, again")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args()


def save(report: dict[str, Any], options: argparse.Namespace) -> None:
    for path, text in ((options.json, json.dumps(report, indent=1)), (options.markdown, markdown(report))):
        if path:
            write_text(path, text)


def main() -> None:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    report: dict[str, Any] = {"commands": [], "facts": [], "rows": []}
    if options.json and options.json.is_file():
        report = json.loads(options.json.read_text())
    report["commands"].append(f"python {shlex.join(sys.argv)}")
    if options.count:
        report["counts"] = [row for name in options.models for row in counts(name)]
        save(report, options)
        return
    for name in options.models:
        for tokens in options.tokens:
            wanted = {"model": name, "visual_tokens": tokens, "keep": options.keep}
            wanted |= {"dtype": options.dtype, "device": options.device, "threads": torch.get_num_threads()}
            measured = [row["method"] for row in report["rows"] if wanted.items() <= row.items()]
            missing = [method for method in options.methods or registry() if method not in measured]
            if not missing:
                print(f"{name} at {tokens} tokens was measured before")
                continue
            heads = f"{'keep':>16} {'select':>11} {'of unpruned':>11} {'of own':>7}"
            print(f"{'model':15} {'tokens':>6} {'method':14} {heads}")
            for row in measure(name, tokens, missing, options):
                if "facts" in row:
                    report["facts"].append(row["facts"])
                    continue
                report["rows"].append(row)
                print(
                    f"{name:15} {tokens:6d} {row['method']:14} {row['budget']:>16} {row['select_ms']:8.1f} ms "
                    f"{row['share_of_unpruned_prefill']:10.1%} {row['share_of_own_prefill']:7.1%}",
                    flush=True,
                )
            save(report, options)
    print(json.dumps(report["facts"][-1]))


if __name__ == "__main__":
    main()
