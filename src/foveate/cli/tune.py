"""`foveate tune`: the setting that is soonest at its first token and keeps enough accuracy, as a file for all else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from foveate.cli import eval as common
from foveate.cli.show import add_row, make_table

if TYPE_CHECKING:
    from foveate.evals.tune import Verdict


def tune(
    model: common.Model = None,
    data: common.Data = "scenes:val",
    method: common.Methods = ["vitcop", "random", "downsample"],  # noqa: B006
    keep: common.Keeps = ["3/4,1/2,1/3,2/9,1/9"],  # noqa: B006
    min_retention: Annotated[
        float, typer.Option(min=0.01, max=1.5, help="Least share of the unpruned accuracy (lower 95 % bound).")
    ] = 0.98,
    write: Annotated[Path, typer.Option(help="The file for `foveate.prune` and `foveate ask`.")] = Path("foveate.json"),
    metric: common.Metric = "exact_match",
    limit: common.Limit = None,
    batch: common.Batch = 1,
    max_new_tokens: common.NewTokens = 32,
    prompt: common.Prompt = "{question}",
    skip_bad: common.SkipBad = False,
    out: common.Out = Path("runs/tune"),
    seed: common.Seed = 0,
    dtype: common.Dtype = None,
    device: common.Device = None,
    attention: common.Attention = None,
) -> None:
    """Find the method and keep with the least time to first token that retain enough accuracy; write foveate.json."""
    from foveate.evals.evaluate import Plan
    from foveate.evals.tune import choose, judge, tuned
    from foveate.files.atomic import write_text
    from foveate.files.outputs import check_file

    check_file(write, (".json",))
    plan = Plan(
        **common.common_options(model, method, keep), data=data, metric=metric, limit=limit, batch=batch, prompt=prompt,
        max_new_tokens=max_new_tokens, skip_bad=skip_bad, out=out, seed=seed, dtype=dtype, device=device,
        attention=attention,
    )  # fmt: skip
    evaluation = common.run(plan)
    verdicts = judge(evaluation.found["results"], min_retention)
    common.console().print(_table(verdicts, min_retention))
    chosen = choose(verdicts, min_retention)
    found = evaluation.found | {"min_retention": min_retention}
    write_text(write, tuned(chosen, verdicts, plan.settings, found).to_json())
    row = chosen.row
    kept = f"{row['retention']:.1%} (at least {row['retention_low']:.1%})"
    typer.echo(f"{write.resolve()}: {row['description']}, retains {kept} with {row['kept']:.1%} of the visual tokens")


def _table(verdicts: Sequence[Verdict], min_retention: float) -> Table:
    from foveate.evals.tune import MARGIN, best

    headers = ["setting", "score %", "retained %", "lower bound", "kept %", "vision ms", "prefill ms", "first token ms"]
    title = f"retain at least {min_retention:.1%} of the unpruned accuracy, least time to first token first"
    caption = f"first token: vision and prefill; faster means a speed-up of at least {1 / (1 - MARGIN):.2f}x for sure"
    shown = make_table([*headers, "speed-up", "at least", "verdict"], title, caption)
    shown.columns[-1].justify = "left"
    reference, chosen = verdicts[0].row, best(verdicts)
    for verdict in verdicts:
        row = verdict.row
        words = "reference" if row is reference else _words(verdict, verdict is chosen)
        add_row(
            shown,
            row["setting"],
            f"{row['score']:.1%}",
            "-" if row["retention"] is None else f"{row['retention']:.1%}",
            "-" if row["retention_low"] is None else f"{row['retention_low']:.1%}",
            f"{row['kept']:.1%}",
            f"{row['vision_ms']:.2f}",
            f"{row['prefill_ms']:.2f}",
            f"{row['ttft_ms']:.2f}",
            _speedup(row["ttft_ratio"]),
            _speedup(row["ttft_ratio_interval"] and row["ttft_ratio_interval"][1]),
            words,
        )
    return shown


def _speedup(ratio: float | None) -> str:
    return f"{1 / ratio:.2f}x" if ratio else "-"


def _words(verdict: Verdict, chosen: bool) -> str | Text:
    if chosen:
        return Text("chosen", style="green")
    if not verdict.retains:
        return "loses too much"
    return "retains" if verdict.faster else "not faster"
