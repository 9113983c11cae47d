"""The page of benchmarks/plus.py."""

from __future__ import annotations

import json
from typing import Any

from foveate.evals.paired import difference

HELD_OUT = 500
"""Where the samples begin to train on, of splits without a second one of their kind."""


def markdown(report: dict[str, Any], command: str) -> str:
    about = report["about"]
    how = f"to evidence boxes after layer {about['layer']}" if about["prune"] == "boxes" else "by the shipped module"
    if about["max_keep"] is not None or about["background"]:
        how += f" (`max_keep={about['max_keep']}, background={about['background']}`)"
    rows = "`scenes:train`" if about["split"] == "test" else f"`scenes:{about['split']}` from {HELD_OUT} on"
    lines = [
        "# GlimpsePrune+ on the zoo model", "", f"Written by `{command}`.", "",
        f"Trained on {', '.join(about['types'])} questions of {rows}, rollouts pruned {how}; {about['group']} "
        f"completions of {about['prompts']} prompts a step, reward exact match. Tested on {about['test']} held-out "
        f"questions of that kind and the first {about['test_all']} of `scenes:{about['split']}`; exact match, greedy, "
        "pruned in the same way or not at all. In brackets: the difference to the unpruned base in points, paired, "
        "with its standard error (over the questions; of several seeds, of a question's mean).", "",
        "| model | input | " + " | ".join(next(iter(report["accuracy"].values()))) + " |", "|---|---|---|---|",
    ]  # fmt: skip
    base = report["accuracy"]["base, unpruned"]
    for name, row in (report["accuracy"] | over_seeds(report)).items():
        head, _, how = name.rpartition(", ")
        lines.append(f"| {head} | {how} | " + " | ".join(cell(hits, base[kind]) for kind, hits in row.items()) + " |")
    lines += [
        "",
        "| rollouts | seconds per step | peak memory of the process | visual tokens kept | whole run |",
    ]
    lines += ["|---|---|---|---|---|"]
    for name, cost in report["costs"].items():
        seconds = f"{cost['step_seconds']:.1f}" if cost["step_seconds"] else "-"  # of a single step: none is counted
        lines.append(
            f"| {name} | {seconds} | {cost['peak_mib']:.0f} MiB | {cost['kept_share']:.1%} | {cost['seconds']:.0f} s |"
        )
    lines += ["", f"Settings: `{json.dumps(about)}`", "", f"Machine: `{json.dumps(report['facts'])}`", ""]
    return "\n".join(lines)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def cell(hits: list[float], base: list[float]) -> str:
    """Accuracy, and its difference to the unpruned base."""
    found = difference(hits, base)
    return f"{mean(hits):.1%} ({100 * found.mean:+.1f} ± {100 * (found.error or 0):.1f})"


def over_seeds(report: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """The last step of all seeds, question by question averaged."""
    steps: dict[str, list[dict[str, list[float]]]] = {}
    last = f"step {report['about']['steps']}"
    for name, row in report["accuracy"].items():
        if f", {last}, " in name:
            steps.setdefault(name.split(", ", 1)[1], []).append(row)
    return {
        f"mean of {len(rows)} seeds, {name}": {
            kind: [mean(list(each)) for each in zip(*(row[kind] for row in rows), strict=True)] for kind in rows[0]
        }
        for name, rows in steps.items()
        if len(rows) > 1
    }
