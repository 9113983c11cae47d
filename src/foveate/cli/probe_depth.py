"""`foveate probe-depth`: up to which layer a model reads its image, and where methods could prune therefore."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from foveate.cli import eval as common
from foveate.cli.show import add_row, make_progress, make_table

if TYPE_CHECKING:
    from foveate.evals.depth import Depth, Proposal


def probe_depth(
    model: common.Model = None,
    data: common.Data = "scenes:val",
    limit: Annotated[int, typer.Option(min=1, help="Use the first samples only.")] = 100,
    left: Annotated[int, typer.Option(min=1, help="Visual tokens of every image that stay.")] = 1,
    metric: common.Metric = "exact_match",
    max_new_tokens: common.NewTokens = 32,
    prompt: common.Prompt = "{question}",
    skip_bad: common.SkipBad = False,
    out: Annotated[Path, typer.Option(help="Folder of depth.json and depth.png.")] = Path("runs/depth"),
    dtype: common.Dtype = None,
    device: common.Device = None,
    attention: common.Attention = None,
) -> None:
    """Let nearly all visual tokens leave before each layer in turn; say where reading begins and where it is done."""
    from foveate import zoo
    from foveate.evals import depth, questions
    from foveate.evals.plots import depths
    from foveate.files.atomic import replacing, write_text
    from foveate.files.environment import facts
    from foveate.files.outputs import check_folder, check_packages
    from foveate.inference.answer import Asker

    check_folder(out)
    check_packages("The figure", "eval", "matplotlib")
    name = model or zoo.DEFAULT
    task = questions.load(data, limit, prompt, skip_bad)
    asker = Asker.load(name, max_new_tokens, dtype=dtype, device=device, attn_implementation=attention)
    with make_progress(elapsed=True) as progress:
        bar = progress.add_task(f"{name} on {data}", total=len(task.ids))
        found, unpruned, skipped = depth.probe(
            asker, task, metric, left, skip_bad, lambda done: progress.advance(bar, done)
        )
    proposal, asked = depth.propose(found), len(task.ids) - len(skipped)
    title = f"{name} on {data}, {asked} samples, {left} visual token(s) left"
    common.console().print(_table(found, unpruned, title, metric))
    typer.echo(_words(proposal))
    content: dict[str, Any] = {
        "format": "foveate.depth/1", "command": common.given_command(), "model": name, "data": data, "metric": metric,
        "samples": asked, "left": left, "skipped": [*task.skipped, *skipped], "unpruned": unpruned,
        "depths": [asdict(one) for one in found], "proposal": asdict(proposal), "environment": facts(asker.model),
    }  # fmt: skip
    with replacing(out / "depth.png") as partial:
        depths(found, unpruned, title, metric.replace("_", " ")).savefig(partial, format="png", dpi=130)
    write_text(out / "depth.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    typer.echo(f"{out.resolve()}: depth.json, depth.png")


def _table(found: list[Depth], unpruned: float, title: str, metric: str) -> Table:
    caption = f"unpruned {unpruned:.1%}; with standard errors; read: share of the KL at layer 0 that is gone"
    shown = make_table(["leaves before layer", f"{metric} %", "KL, nats", "read"], title, caption)
    for one in found:
        score, kl = f"{one.score:.1%} ± {one.score_error:.1%}", f"{one.kl:.3f} ± {one.kl_error:.3f}"
        add_row(shown, str(one.layer), score, kl, f"{one.read:.0%}")
    return shown


def _words(proposal: Proposal) -> str:
    shallow, deep = proposal.vitcop
    return (
        f"Text reads the image up to layer {proposal.done}: a tenth before layer {proposal.begun}, half before layer "
        f"{proposal.half}. To begin a search with: fastv:layer={proposal.fastv}, "
        f"vitcop:shallow_layer={shallow},deep_layer={deep}, a glimpse module with reduce_layer {proposal.glimpse}."
    )
