"""All commands in one place. Each lives in its own file and imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foveate.cli import (
    ask,
    batch,
    bench,
    chat,
    convert,
    demo,
    eval,
    families,
    methods,
    page,
    probe_depth,
    scenes,
    serve,
    train_glimpse,
    train_plus,
    tune,
)  # fmt: skip
from foveate.cli.quiet import be_loud, quietly
from foveate.version import __version__

EPILOG = "Exit codes: 0 done, 1 an error that is told in one line, 2 wrong usage, 130 interrupted (Ctrl-C)."

app = typer.Typer(
    help="Visual-token pruning for stock Hugging Face vision-language models.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
train = typer.Typer(help="Train a glimpse module, or a whole model on pruned inputs.", no_args_is_help=True)
conversion = typer.Typer(help="Convert official checkpoints.", no_args_is_help=True)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"foveate {__version__}")
        raise typer.Exit


@app.callback()
def _foveate(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version and end.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also what other libraries say on loading.")] = False,
    config: Annotated[
        Path | None, typer.Option(help="Defaults of options; else foveate.toml here or in a folder above.")
    ] = None,
) -> None:
    """Visual-token pruning for stock Hugging Face vision-language models."""
    from foveate.cli.defaults import nearest, read

    be_loud(verbose)
    file = config or nearest(Path.cwd())
    if file is not None:
        context.default_map = read(file, context.command)


@conversion.callback()
def _convert() -> None:
    """Convert official checkpoints."""


app.command()(quietly(ask.ask))
app.command()(quietly(chat.chat))
app.command()(quietly(demo.demo))
app.command()(quietly(page.page))
app.command()(quietly(bench.bench))
app.command()(quietly(batch.batch))
app.command("eval")(quietly(eval.evaluate))
app.command()(quietly(tune.tune))
app.command("probe-depth")(quietly(probe_depth.probe_depth))
app.command()(quietly(serve.serve))
app.command()(methods.methods)
app.command()(families.families)
app.command()(families.doctor)
app.add_typer(scenes.app, name="scenes")
app.add_typer(train, name="train")
app.add_typer(conversion, name="convert")
train.command("glimpse")(quietly(train_glimpse.glimpse))
train.command("plus")(quietly(train_plus.plus))
app.command()(quietly(train_plus.merge))
conversion.command("glimpse")(convert.glimpse)
