"""All commands in one place. Each lives in its own file and imports what it needs when it runs."""

from __future__ import annotations

import typer

from foveate.cli import (
    ask,
    batch,
    bench,
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

app = typer.Typer(
    help="Visual-token pruning for stock Hugging Face vision-language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
train = typer.Typer(help="Train a glimpse module, or a whole model on pruned inputs.", no_args_is_help=True)
conversion = typer.Typer(help="Convert official checkpoints.", no_args_is_help=True)


@conversion.callback()
def _convert() -> None:
    """Convert official checkpoints."""


app.command()(ask.ask)
app.command()(demo.demo)
app.command()(page.page)
app.command()(bench.bench)
app.command()(batch.batch)
app.command("eval")(eval.evaluate)
app.command()(tune.tune)
app.command("probe-depth")(probe_depth.probe_depth)
app.command()(serve.serve)
app.command()(methods.methods)
app.command()(families.families)
app.command()(families.doctor)
app.add_typer(scenes.app, name="scenes")
app.add_typer(train, name="train")
app.add_typer(conversion, name="convert")
train.command("glimpse")(train_glimpse.glimpse)
train.command("plus")(train_plus.plus)
app.command()(train_plus.merge)
conversion.command("glimpse")(convert.glimpse)
