"""`foveate scenes`: the built-in images on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foveate.cli.show import make_progress

app = typer.Typer(help="Rendered question-answering images.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Rendered question-answering images."""


@app.command()
def render(
    out: Annotated[Path, typer.Option(help="New folder for images/, samples.jsonl and sheet.png.")],
    split: Annotated[
        str, typer.Option(help="train, val, test, hard, multi, large, document, dense or video.")
    ] = "test",
    n: Annotated[int, typer.Option(min=1, help="Number of samples.")] = 20,
    start: Annotated[int, typer.Option(min=0, help="Index of the first sample.")] = 0,
) -> None:
    """Render samples of a split: images, JSON lines with questions, answers and boxes, a contact sheet."""
    from foveate.files.outputs import check_folder
    from foveate.scenes import load
    from foveate.scenes.export import export

    check_folder(out)
    samples = load(split, n, start)
    with make_progress() as progress:
        task = progress.add_task(f"rendering {split}", total=n)
        export(samples, out, lambda: progress.advance(task))
    typer.echo(f"{n} samples in {out}: samples.jsonl, images/, sheet.png")


@app.command()
def shares(
    splits: Annotated[list[str] | None, typer.Argument(help="Splits; all by default.")] = None,
    n: Annotated[int, typer.Option(min=1, help="Samples of each.")] = 90,
) -> None:
    """Print how many visual tokens of each split show something, and how many show what is asked about."""
    from foveate.scenes import SPLITS, load
    from foveate.scenes import shares as measure

    for split in splits or SPLITS:
        found = measure(load(split, n))
        typer.echo(
            f"{split}: {found.tokens:.0f} tokens, {100 * found.foreground:.1f} % show something, "
            f"{100 * found.evidence:.1f} % are evidence"
        )
