"""`foveate bench`: what pruning saves, measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from foveate.cli.eval import Keeps, Methods, console, given_command
from foveate.cli.show import add_row, make_progress, make_table, plain

Model = Annotated[str | None, typer.Option(help="Folder, Hub id or preset with random weights; default: the zoo's.")]


def bench(
    model: Model = None,
    method: Methods = ["vitcop"],  # noqa: B006
    keep: Keeps = ["1/9"],  # noqa: B006
    image: Annotated[str | None, typer.Option(help="A real image file; else random pixels.")] = None,
    video: Annotated[str | None, typer.Option(help="A real video file.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="So many frames of it; default: the model's.")] = None,
    question: Annotated[str, typer.Option(help="Asked about --image or --video.")] = "What is shown here?",
    tokens: Annotated[int | None, typer.Option(min=4, help="Visual tokens of a random image.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows, all with the same prompt shape.")] = 1,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate, exactly.")] = 16,
    repeats: Annotated[int, typer.Option(min=1, help="Measured rounds.")] = 7,
    warmup: Annotated[int, typer.Option(min=0, help="Rounds before that.")] = 2,
    memory: Annotated[bool, typer.Option(help="Measure peak memory (on a CPU: one process per setting).")] = True,
    json: Annotated[Path | None, typer.Option("--json", help="Write everything here.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write one line per setting here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw time and memory against keep (png, pdf, svg).")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16; auto: float32 on a CPU.")] = "auto",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1.")] = None,
    attention: Annotated[str | None, typer.Option(help="eager, sdpa, flash_attention_2.")] = None,
    seed: Annotated[int, typer.Option(help="Of random weights and prompts.")] = 0,
) -> None:
    """Time, memory and operations of the unpruned model and of every method at every keep, interleaved."""
    from torch import get_num_threads

    from foveate import zoo
    from foveate.bench.job import Job
    from foveate.bench.run import calls, run
    from foveate.specs.grammar import parse_keeps
    from foveate.specs.settings import grid

    _check(json, csv, plot)
    name = model or zoo.DEFAULT
    settings = grid(method, parse_keeps(keep), name)
    job = Job(
        name, tokens, image, question, batch, new_tokens, dtype, attention, seed, get_num_threads(), video, frames
    )
    with make_progress(transient=True) as progress:
        task = progress.add_task(name, total=calls(settings, repeats, warmup, memory))
        found = run(
            job, settings, repeats, warmup, memory, device, given_command(), on_call=lambda: progress.advance(task)
        )
    console().print(plain(heading(found)))
    for shown in tables(found):
        console().print(shown)
    _write(found, json, csv, plot)


def _check(json: Path | None, csv: Path | None, plot: Path | None) -> None:
    """What would stop the results from being written, before they are measured."""
    from foveate.files.outputs import PLOTS, check_file, check_packages

    for path, suffixes in ((json, ()), (csv, ()), (plot, PLOTS)):
        if path is not None:
            check_file(path, suffixes)
    if plot is not None:
        check_packages("--plot", "eval", "matplotlib")


def tables(found: dict[str, Any]) -> Iterator[Table]:
    """The report for a terminal of 80 columns."""
    from foveate.bench.tables import TABLES

    for shown in TABLES:
        drawn = make_table(shown.columns, shown.title, title_justify="left", box=None, collapse_padding=True)
        for row in found["results"]:
            add_row(drawn, *shown.line(row))
        yield drawn


def heading(found: dict[str, Any]) -> str:
    run, where = found["run"], found["environment"]
    return (
        f"{run['model']}: {run['prompt']}; batch {run['batch']}, {run['new_tokens']} new tokens, {where['dtype']}, "
        f"{where['attention']}, {where['device']}. Medians of {run['repeats']} rounds; speed-ups (min-max) are paired "
        "within a round."
    )


def _write(found: dict[str, Any], json: Path | None, csv: Path | None, plot: Path | None) -> None:
    from foveate.bench import report
    from foveate.bench.plot import save

    for path, write in ((json, report.write_json), (csv, report.write_csv), (plot, save)):
        if path is not None:
            write(found, path)
            typer.echo(f"{path.resolve()}")
