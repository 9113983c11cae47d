"""The page of benchmarks/plus_rollouts.py."""

from __future__ import annotations

import json
from typing import Any

from plus_page import HELD_OUT

from foveate.evals.paired import difference

INPUTS = {
    "none": "unpruned", "background": "module with background", "module": "module alone", "boxes": "evidence boxes",
}  # fmt: skip

Hits = dict[str, list[float]]


def markdown(report: dict[str, Any], command: str) -> str:
    about = report["about"]
    lines = [
        "# GlimpsePrune+ on a split that the model never saw", "", f"Written by `{command}`.", "",
        f"The zoo model never saw images like those of `scenes:{about['split']}`. {about['train']} questions "
        f"({', '.join(about['types'])}) of its samples from {HELD_OUT} on were sampled {about['screen']} times each, "
        "pruned as the rollouts are; trained on are those answered sometimes but not always: "
        f"{about['steps']} steps of {about['prompts']} groups of {about['group']}, learning rate {about['rate']:g}, KL "
        f"weight {about['beta']:g}, reward exact match. Tested on {about['test']} questions of these types and on the "
        f"first {about['test_all']} of all types, all before sample {HELD_OUT}; exact match, greedy, in percent.", "",
        f"Pruned after layer {report['layer']} to the evidence boxes (which nobody has when the model is used), by the "
        f"shipped module alone, or by it with a background (`max_keep={about['max_keep']}, "
        f"background={about['background']}`). ± is the standard error of the paired difference to the **unpruned "
        "base** (over the questions; of several seeds, of a question's mean).", "",
    ]  # fmt: skip
    lines += [*_accuracy(report), "", *_types(report), "", *_runs(report)]
    facts = f"Machine: `{json.dumps(report['facts'])}`"
    return "\n".join([*lines, "", f"Settings: `{json.dumps(about)}`", "", facts, ""])


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def averaged(report: dict[str, Any]) -> dict[str, Hits]:
    """Every kind's hits by input, question by question averaged over its seeds; `base` first."""
    kinds: dict[str, list[Hits]] = {}
    for name, row in report["hits"].items():
        kinds.setdefault(name.split(",")[0], []).append(row)
    return {
        kind: {how: [mean(list(each)) for each in zip(*(row[how] for row in rows), strict=True)] for how in rows[0]}
        for kind, rows in kinds.items()
    }


def _accuracy(report: dict[str, Any]) -> list[str]:
    base = report["hits"]["base"]["none"]
    trained, every = report["sets"].values()
    head = ["rollouts", "asked", "trained types", "- unpruned base", "of unpruned base", "- base asked alike", "seeds"]
    head += ["all types"]
    head += ["- unpruned base"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for kind, row in averaged(report).items():
        for how, hits in row.items():
            own, wanted = _of(hits, trained), _of(base, trained)
            runs = [h[how] for name, h in report["hits"].items() if name.startswith(f"{kind},")]
            cells = [
                "base, untrained" if kind == "base" else INPUTS[kind], INPUTS[how], f"{100 * mean(own):.1f}",
                _gain(own, wanted, bold=kind != "base" and how != "none"), f"{mean(own) / mean(wanted):.0%}",
                _gain(own, _of(report["hits"]["base"][how], trained)),
                ", ".join(f"{100 * mean(_of(run, trained)):.1f}" for run in runs),
                f"{100 * mean(_of(hits, every)):.1f}", _gain(_of(hits, every), _of(base, every)),
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", "Bold: pruned, and above the unpruned base by more than two standard errors."]


def _of(hits: list[float], places: list[int]) -> list[float]:
    return [hits[place] for place in places]


def _gain(hits: list[float], base: list[float], bold: bool = False) -> str:
    if hits == base:
        return ""
    found = difference(hits, base)
    text = f"{100 * found.mean:+.1f} ± {100 * (found.error or 0):.1f}"
    return f"**{text}**" if bold and found.mean > 2 * (found.error or 0) else text


def _types(report: dict[str, Any]) -> list[str]:
    names = list(dict.fromkeys(report["types"]))
    lines = ["## By type", "", "| rollouts | asked | " + " | ".join(f"`{name}`" for name in names) + " |"]
    lines.append("|---|---|" + "---|" * len(names))
    for kind, row in averaged(report).items():
        for how, hits in row.items():
            cells = [
                f"{100 * mean([hit for hit, own in zip(hits, report['types'], strict=True) if own == name]):.0f}"
                for name in names
            ]
            lines.append(f"| {'base' if kind == 'base' else INPUTS[kind]} | {INPUTS[how]} | {' | '.join(cells)} |")
    return lines


def _runs(report: dict[str, Any]) -> list[str]:
    head = ["rollouts", "questions", "reward, first eight steps", "last eight", "groups with equal rewards"]
    head += ["tokens kept", "seconds a step"]
    lines = ["## The runs", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, run in report["runs"].items():
        kind, _, seed = name.partition(",")
        cells = [
            f"{INPUTS[kind]},{seed}", str(run["rows"]), f"{mean(run['reward'][:8]):.2f}",
            f"{mean(run['reward'][-8:]):.2f}", f"{mean(run['frac_reward_zero_std']):.0%}",
            f"{mean(run['kept_share']):.1%}", f"{mean(run['step_time'][1:]):.1f}" if run["step_time"][1:] else "-",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", "Times were taken beside other work; runs that were made at different times do not compare."]
