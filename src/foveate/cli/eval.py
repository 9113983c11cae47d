"""`foveate eval`: what pruning costs in accuracy, measured."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from foveate.cli.show import add_row, make_progress, make_table

if TYPE_CHECKING:
    from foveate.evals.evaluate import Evaluation, Plan

Model = Annotated[str | None, typer.Option(help="Folder, Hub id or zoo name; default: the zoo model.")]
Data = Annotated[str, typer.Option(help="scenes, scenes:SPLIT, a .jsonl, .json or .parquet file, or a saved dataset.")]
Methods = Annotated[list[str], typer.Option(help="Name, name:parameter=value,... or a foveate.json; repeatable.")]
Keeps = Annotated[list[str], typer.Option(help="Ratios, fractions or counts, e.g. 1/9,0.5; repeatable.")]
Metric = Annotated[
    str,
    typer.Option(help="exact_match, contains, multiple_choice, vqa_accuracy, anls, relaxed_accuracy; lmms:NAME."),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Use the first samples only.")]
Batch = Annotated[int, typer.Option(min=1, help="Questions per batch.")]
NewTokens = Annotated[int, typer.Option(min=1, help="Longest answer.")]
Prompt = Annotated[str, typer.Option(help="What to ask; {question} stands for the question.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave unusable rows out and count them.")]
Out = Annotated[Path, typer.Option(help="Folder; the same one again continues.")]
Seed = Annotated[int, typer.Option(help="Of the bootstrap.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16; default: float32 on a CPU.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, auto.")]
Attention = Annotated[str | None, typer.Option(help="eager, sdpa, flash_attention_2.")]


def evaluate(
    model: Model = None,
    data: Data = "scenes",
    method: Methods = ["vitcop", "random", "downsample"],  # noqa: B006
    keep: Keeps = ["1/2,1/3,2/9,1/9"],  # noqa: B006
    metric: Metric = "exact_match",
    limit: Limit = None,
    batch: Batch = 1,
    max_new_tokens: NewTokens = 32,
    prompt: Prompt = "{question}",
    skip_bad: SkipBad = False,
    out: Out = Path("runs/eval"),
    report: Annotated[bool, typer.Option(help="Draw pareto.png and report.html.")] = True,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = None,
    attention: Attention = None,
) -> None:
    """Accuracy and kept tokens of the unpruned model and of every method at every keep. Continues where it stopped."""
    from foveate.evals.evaluate import Plan, illustrate
    from foveate.files.outputs import check_packages

    if report:
        check_packages("The report", "eval", "matplotlib", "jinja2")
    plan = Plan(
        **common_options(model, method, keep), data=data, metric=metric, limit=limit, batch=batch, prompt=prompt,
        max_new_tokens=max_new_tokens, skip_bad=skip_bad, out=out, seed=seed, dtype=dtype, device=device,
        attention=attention,
    )  # fmt: skip
    evaluation = run(plan)
    console().print(table(evaluation.found, narrow=console().width < 110))
    if report:
        illustrate(evaluation, out)
    typer.echo(f"{out.resolve()}: results.jsonl, summary.json, summary.csv{', pareto.png, report.html' * report}")


def common_options(model: str | None, method: list[str], keep: list[str]) -> dict[str, Any]:
    from foveate import zoo
    from foveate.specs.grammar import parse_keeps
    from foveate.specs.settings import grid

    name = model or zoo.DEFAULT
    return {"model": name, "settings": grid(method, parse_keeps(keep), name)}


def given_command() -> str:
    """The command line as it was typed, for reports."""
    return shlex.join(["foveate", *sys.argv[1:]])


def run(plan: Plan) -> Evaluation:
    """Evaluate with a progress bar."""
    from foveate.evals.evaluate import evaluate

    with make_progress(elapsed=True) as progress:
        task = progress.add_task(f"{plan.model} on {plan.data}", total=None)
        evaluation = evaluate(
            plan,
            given_command(),
            on_start=lambda total: progress.update(task, total=total),
            on_answers=lambda n: progress.advance(task, n),
        )
    if evaluation.found["skipped"]:
        Console(stderr=True).print(f"[yellow]{len(evaluation.found['skipped'])} samples skipped[/yellow]")
    return evaluation


def console() -> Console:
    """Standard output; wide where there is no terminal whose width would matter."""
    return Console() if sys.stdout.isatty() else Console(width=170)


def table(found: dict[str, Any], narrow: bool = False) -> Table:
    """The summary for a terminal; a narrow one leaves out what follows from other columns."""
    title = f"{found['run']['model']} on {found['run']['data']}, {found['results'][0]['samples']} samples"
    if found["skipped"]:
        title += f", {len(found['skipped'])} skipped"
    headers = ["setting", f"{found['metric']} %", "95 %", "retained %", "tokens\nper layer", "kept %"]
    times = (
        "; times stand in the report" if narrow else "; times are medians per sample; first token: vision and prefill"
    )
    caption = f"95 % bootstrap intervals{times}"
    rest = [] if narrow else ["first token\nms", "prefill\nms", "KV kB"]
    shown = make_table([*headers, *rest], title, caption)
    for row in found["results"]:
        low, high = row["score_interval"]
        add_row(
            shown,
            row["setting"],
            f"{row['score']:.1%}",
            f"{low:.1%}-{high:.1%}",
            "-" if row["retention"] is None else f"{row['retention']:.1%}",
            f"{row['kept_tokens']:.1f}",
            f"{row['kept']:.1%}",
            *([] if narrow else [f"{row['ttft_ms']:.2f}", f"{row['prefill_ms']:.2f}", f"{row['kv_bytes'] / 1000:.1f}"]),
        )
    return shown
