"""One evaluation: run or resume, count, and write what people and programs read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveate.data.rows import Rows
from foveate.evals import questions, runner
from foveate.evals.store import Store
from foveate.evals.summary import Answers, collect, summarise
from foveate.files.atomic import replacing, write_text
from foveate.files.environment import facts
from foveate.files.outputs import check_folder
from foveate.inference.answer import Asker
from foveate.inference.weights import warn_if_tuned_elsewhere
from foveate.scoring import metric
from foveate.specs.settings import Setting

DEFINITIONS = {
    "score": "mean of the metric over samples, greedy decoding; interval: percentile bootstrap over samples",
    "retention": "score over the unpruned model's score on the same samples; interval: paired bootstrap",
    "retention_low": "one-sided 95 % lower bound of retention",
    "kept_tokens": "visual tokens alive, average over decoder layers, mean over samples",
    "kept": "kept_tokens over the sample's visual tokens, mean over samples",
    "left": "visual tokens that the last layer reads over the sample's visual tokens, mean over samples",
    "prefill_ms": "decoder layers over the prompt, selection included: the batch's time over its rows, median",
    "select_ms, vision_ms": "likewise: choosing tokens; the vision tower",
    "ttft_ms": "time to first token: vision_ms + prefill_ms, median",
    "ttft_ratio": "ttft_ms over the unpruned model's on the same sample, median; interval: one-sided 95 % bounds from "
    "order statistics, a batch counted once",
    "kv_bytes": "keys and values after the prefill: the batch's over its rows, mean",
}


@dataclass(frozen=True)
class Plan:
    """What to evaluate, as names and numbers.

    Attributes:
        out: folder for `results.jsonl` and what is made from it.
        prompt: `{question}` stands for the question.
    """

    model: str
    data: str
    settings: Sequence[Setting]
    out: Path
    metric: str = "exact_match"
    limit: int | None = None
    batch: int = 1
    max_new_tokens: int = 32
    prompt: str = "{question}"
    skip_bad: bool = False
    seed: int = 0
    dtype: str | None = None
    device: str | None = None
    attention: str | None = None


@dataclass
class Evaluation:
    """What came out: the summary as plain values, and what the pictures need."""

    found: dict[str, Any]
    answers: list[Answers]
    task: Rows
    asker: Asker
    settings: Sequence[Setting] = field(default_factory=list)


def evaluate(
    plan: Plan,
    command: str = "",
    on_start: Callable[[int], None] = lambda total: None,
    on_answers: Callable[[int], None] = lambda n: None,
) -> Evaluation:
    """Run a plan, or what is missing of it, and write `summary.json` and `summary.csv`.

    Args:
        on_start: told the number of (setting, sample) pairs, once the model is loaded.
        on_answers: told how many more of them are done.

    Raises:
        DataError, MetricError, StoreError: see their modules.
    """
    from foveate.inference.loading import load

    metric(plan.metric)  # before anything takes time
    check_folder(plan.out)
    task = questions.load(plan.data, plan.limit, plan.prompt, plan.skip_bad)
    model, processor = load(plan.model, dtype=plan.dtype, device=plan.device, attn_implementation=plan.attention)
    asker = Asker(model, processor, plan.max_new_tokens)
    for setting in plan.settings:
        warn_if_tuned_elsewhere(setting.name, setting.evidence, model)
    on_start(len(task.ids) * len(plan.settings))
    keys = [(setting.describe(), setting.name) for setting in plan.settings]
    with Store(plan.out / "results.jsonl", runner.identity(plan.model, asker, task, plan.prompt)) as store:
        done = runner.run(asker, task, plan.settings, store, plan.batch, plan.skip_bad, on_answers)
        answers = collect(store, keys, task.ids, plan.metric)
    more = {"command": command, "run": store.identity, "environment": facts(model)}
    found = _found(plan, answers) | more | {"computed_now": done.computed, "skipped": [*task.skipped, *done.skipped]}
    write_text(plan.out / "summary.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write_text(plan.out / "summary.csv", _csv(found["results"]))
    return Evaluation(found, answers, task, asker, plan.settings)


def _found(plan: Plan, answers: Sequence[Answers]) -> dict[str, Any]:
    return {
        "format": "foveate.eval/1",
        "metric": plan.metric,
        "limit": plan.limit,
        "batch": plan.batch,
        "seed": plan.seed,
        "definitions": DEFINITIONS,
        "results": summarise(answers, plan.seed),
    }


def illustrate(evaluation: Evaluation, out: Path) -> None:
    """Write `pareto.png` and the self-contained `report.html`.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    from foveate.evals import html
    from foveate.evals.plots import pareto

    found = evaluation.found
    run = found["run"]
    title = f"{run['model']} on {run['data']}, {found['results'][0]['samples']} samples"
    figure = pareto(found["results"], title, found["metric"].replace("_", " "))
    with replacing(out / "pareto.png") as partial:
        figure.savefig(partial, format="png", dpi=130)
    cases = html.groups(evaluation.asker, evaluation.task, evaluation.settings, evaluation.answers)
    write_text(out / "report.html", html.render(found, figure, cases))


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    flat = []
    for row in rows:
        line = {k: v for k, v in row.items() if k != "by_type" and not k.endswith("_interval")}
        for name in ("score_interval", "retention_interval", "ttft_ratio_interval"):
            low, high = row[name] or (None, None)
            line |= {f"{name}_low": low, f"{name}_high": high}
        line |= {f"score_{kind}": values["score"] for kind, values in row["by_type"].items()}
        flat.append(line)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(flat[0]))
    writer.writeheader()
    writer.writerows(flat)
    return buffer.getvalue()
