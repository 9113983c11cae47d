"""The pages of benchmarks/accuracy.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accuracy_settings import BASELINES

from foveate.errors import DataError
from foveate.evals.paired import difference
from foveate.specs.settings import UNPRUNED

Scores = Sequence[float]
Report = dict[str, Any]

METHODS = """\
# Accuracy of the methods on the built-in scenes

{written} Greedy answers, exact match, in percent.

*Default* is a method as the library has it; *published* is with the fields that reproduce the published code where it
differs (`published=True`, HiPrune's `wrap=True`, ViTCoP's `official=True`, and on LLaVA `positions="contiguous"`).
*kept* is the measured average of visual tokens per decoder layer. Every difference is paired, question by question,
with the standard error of its mean: to the unpruned model, and at the same budget to Random (mean of its seeds) and
Downsample. Differences of less than two standard errors are no order of merit, so methods stand in alphabetical order;
of many methods some differ by two by chance. GlimpsePrune, which chooses its number of tokens itself, is in
[glimpse.md](glimpse.md). Tiny models that know these scenes only say little about large models and photographs: the
page shows whether a method works at all.
"""
SWITCHES = """\
# What a departure from published code does to the answers

{written} Greedy answers, exact match, in percent.

Each row changes one thing about a method: a field, or (where there is no field, because what was published is what the
library does) one departure that is easy to make, from `benchmarks/departures.py`. The difference is *changed* minus
*default*, paired question by question, with the standard error of its mean; what lies within two of them is not told
apart by so many questions. *Other outcome* is the share of questions that one of the two answers right and the other
not. How many kept tokens the same things change is in [under_run_baselines.md](under_run_baselines.md).
"""
VITCOP = """\
# What each choice of ViTCoP does to the answers

{written} Greedy answers, exact match, in percent.

*Default* is ViTCoP with the published choices (stage 1 by attention received, stages 2 and 3 by small key norms), on
both models; each row changes one thing, or what it says. The difference is *changed* minus that, paired question by
question, with the standard error of its mean; *other outcome* is the share of questions that one of the two answers
right and the other not. What follows from it is in [vitcop.md](vitcop.md).
"""
STAGES = """\
# What ViTCoP's stages are worth

{written} Greedy answers, exact match, in percent.

*Default* of `vitcop` is ViTCoP with the published choices (stage 1 by attention received, stages 2 and 3 by small key
norms), on both models; that of `vitcop_diverse` is ours ([vitcop.md](vitcop.md)). Each row leaves stages out, chooses
at random in them, or in stage 3 by the attention of the prompt's last token in the layer before, which can know the
question. The difference is *changed* minus the default, paired question by question, with the standard error of its
mean; *other outcome* is the share of questions that one of the two answers right and the other not.
"""
WIDE = """\
# Accuracy where little of an image is evidence

{written} Greedy answers, exact match, in percent.

Splits: `large` (672 x 672 px), `document` (white pages with fields and a table between wide margins), `dense` (8 to 12
shapes), `hard` (smaller things in clutter), `multi` (several images); those that have been measured are below. The
model was trained on images like those of the first three, and on pairs. *Proportional* is `proportional=True`;
*layers 4 and 9* are ViTCoP's `shallow_layer` and `deep_layer`, chosen on samples from 500 on ([vitcop.md](vitcop.md)).
{paired}
"""
VIDEO = """\
# Accuracy of the methods on videos

{written} Greedy answers, exact match, in percent.

Split `video`: 18 frames of 224 x 224 px at 8 a second, 9 steps of 64 tokens; questions about the first or the last
moment, about which way something moves, and about what comes last or leaves first. *Fewer frames* is the unpruned model
shown 6 or 2 evenly spaced frames of the 18: as many tokens as the methods keep, at a third or a ninth of the tower's
cost. {paired}
"""
PAIRED = """\
*kept* is the measured average of visual tokens per decoder layer. Every difference is paired, question by question,
with the standard error of its mean: to the unpruned model, and at the same budget to Random (mean of its seeds) and
Downsample. Differences of less than two standard errors are no order of merit, so methods stand in alphabetical order.
*Share of unpruned* is correct over correct unpruned. A model of six million parameters that knows these pictures only
says little about large models and photographs."""


def markdown(reports: Sequence[Report], study: str, command: str) -> str:
    """The page of a study.

    Args:
        reports: one per part, as `accuracy.measure` gives them.
        command: that produced them.
    """
    head, table = PAGES[study]
    done = [report for report in reports if report["n"]]
    lines = [head.format(written=f"Written by `{command}`.", paired=PAIRED), *(about(report) for report in done)]
    lines += [f"\n{missing(report)}" for report in reports if report["n"] < report["wanted"]]
    for report in done:
        lines += table(report)
    facts = ", ".join(f"{key} {value}" for key, value in done[0]["facts"].items()) if done else "nothing yet"
    return "\n".join([*lines, "", f"Measured on: {facts}."]) + "\n"


def about(report: Report) -> str:
    run, shares = report["run"], report["shares"]
    unpruned = next(row for row in report["settings"] if row["kind"] == UNPRUNED)
    return (
        f"- `{run['model']}` (weights `{run['weights']}`) on `{run['data']}`: the first {report['n']} questions, "
        f"{len(report['settings'])} settings, {report['seconds_per_answer']:.3f} CPU seconds an answer; unpruned "
        f"**{percent(unpruned['scores'])}**. {100 * shares['foreground']:.1f} % of {shares['tokens']:.0f} tokens show "
        f"something, {100 * shares['evidence']:.1f} % are evidence."
    )


def missing(report: Report) -> str:
    run = report["run"]
    return f"Unfinished: {report['n']} of {report['wanted']} questions of `{run['data']}` to `{run['model']}`."


def by_keep(report: Report) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in report["settings"]:
        if row["kind"] != UNPRUNED:
            found.setdefault(row["keep"], []).append(row)
    return found


def methods(report: Report) -> list[str]:
    """A table for each budget."""
    lines: list[str] = []
    unpruned = next(row["scores"] for row in report["settings"] if row["kind"] == UNPRUNED)
    for keep, rows in by_keep(report).items():
        baselines = {name: pooled(rows, name) for name in BASELINES}
        head = [
            "method",
            "mode",
            "kept",
            "correct",
            "share of unpruned",
            "- unpruned",
            *(f"- {name}" for name in BASELINES),
        ]
        lines += ["", *heading(report, keep), f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        seen: set[str] = set()
        for row in sorted(rows, key=lambda row: (row["kind"], row["mode"])):
            name, is_random = row["kind"], row["kind"] == "random"
            if is_random and name in seen:
                continue
            seen.add(name)
            scores = baselines[name] if is_random else row["scores"]
            cells = [name, "mean of seeds" if is_random else row["mode"], f"{row['kept']:.3f}", percent(scores)]
            cells += [f"{100 * sum(scores) / max(sum(unpruned), 1):.0f} %"]
            cells += [shown(scores, unpruned)]
            cells += ["" if name == other else shown(scores, than) for other, than in baselines.items()]
            lines.append(f"| {' | '.join(cells)} |")
        lines += refusals(report, keep)
    return lines


def switches(report: Report) -> list[str]:
    lines: list[str] = []
    for keep, rows in by_keep(report).items():
        defaults = {row["kind"]: row["scores"] for row in rows if row["mode"] == "default"}
        head = ["method", "changed", "default", "changed", "difference", "other outcome"]
        lines += ["", *heading(report, keep), f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        for row in sorted((row for row in rows if row["mode"] != "default"), key=lambda row: row["kind"]):
            own, base = row["scores"], defaults[row["kind"]]
            other = sum(a != b for a, b in zip(own, base, strict=True)) / len(own)
            cells = [row["kind"], row["mode"], percent(base), percent(own), shown(own, base), f"{100 * other:.0f} %"]
            lines.append(f"| {' | '.join(cells)} |")
        lines += [*beyond(rows, defaults), *refusals(report, keep)]
    return lines


def beyond(rows: Sequence[dict[str, Any]], defaults: dict[str, Scores]) -> list[str]:
    """The changes whose difference is more than two standard errors."""
    found, changed = [], [row for row in rows if row["mode"] != "default"]
    for row in changed:
        each = difference(row["scores"], defaults[row["kind"]])
        if each.error is not None and abs(each.mean) > 2 * each.error:
            found.append(f"{row['kind']}, {row['mode']}")
    return ["", f"Beyond two standard errors, {len(found)} of {len(changed)}: {'; '.join(found) or 'none'}."]


def heading(report: Report, keep: str) -> list[str]:
    run = report["run"]
    return [f"## `{run['model']}`, `{run['data']}`, keep {keep} (n = {report['n']})", ""]


def refusals(report: Report, keep: str) -> list[str]:
    found = sorted({name.split(", ")[0] for name in report["refused"] if name.endswith(f", {keep}")})
    return ["", f"Cannot keep so little on a model of this depth: {', '.join(found)}."] if found else []


def pooled(rows: Sequence[dict[str, Any]], kind: str) -> list[float]:
    """Scores of a baseline, question by question averaged over its seeds.

    Raises:
        DataError: it was not measured.
    """
    scores: list[Scores] = [row["scores"] for row in rows if row["kind"] == kind]
    if not scores:
        raise DataError(f"The page compares with {kind}, which was not measured; leave out --kinds, or name it too.")
    return [sum(each) / len(each) for each in zip(*scores, strict=True)]


def percent(scores: Scores) -> str:
    return f"{100 * sum(scores) / len(scores):.1f}"


def shown(first: Scores, second: Scores) -> str:
    """The paired difference in points, with its standard error."""
    found = difference(first, second)
    return f"{100 * found.mean:+.1f} ± {'?' if found.error is None else format(100 * found.error, '.1f')}"


PAGES = {
    "methods": (METHODS, methods),
    "switches": (SWITCHES, switches),
    "vitcop": (VITCOP, switches),
    "stages": (STAGES, switches),
    "wide": (WIDE, methods),
    "video": (VIDEO, methods),
}
