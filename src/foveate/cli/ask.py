"""`foveate ask`: one question about images, answered by a pruned model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from foveate.cli.compare import measure, table


def ask(
    inputs: Annotated[list[str], typer.Argument(metavar="IMAGE... QUESTION", help="Image files, then the question.")],
    model: Annotated[str | None, typer.Option(help="Folder or Hub id; default: the zoo model.")] = None,
    method: Annotated[str, typer.Option(help="A name of `foveate methods`, or a tuned foveate.json.")] = "vitcop",
    keep: Annotated[
        str | None, typer.Option(help="What to keep: 0.11, 1/9, or a number of visual tokens; default: the method's.")
    ] = None,
    module: Annotated[str | None, typer.Option(help="Glimpse module; default: `glimpse` beside the model.")] = None,
    overlay: Annotated[Path | None, typer.Option(help="Write a picture of what was kept (first image).")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also run unpruned, side by side.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16; default: float32 on CPU.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, auto.")] = None,
    attention: Annotated[str | None, typer.Option(help="eager, sdpa, flash_attention_2.")] = None,
) -> None:
    """Ask a question about one or more images and show what pruning kept and saved."""
    from foveate import zoo
    from foveate.data.images import open_image
    from foveate.files.outputs import PICTURES, check_file
    from foveate.inference.answer import Asker
    from foveate.inference.pruning import resolve
    from foveate.specs.choose import choose_method, one_budget
    from foveate.trace.overlay import save

    files, question = _split(inputs)
    if overlay is not None:
        check_file(overlay, PICTURES)
    images = [open_image(file) for file in files]
    given: dict[str, Any] = {"keep": one_budget(keep) if keep else None, "module": module}
    choose_method(method, model=model or zoo.DEFAULT, **given)  # a wrong name shows before a model is loaded
    asker = Asker.load(model or zoo.DEFAULT, max_new_tokens, dtype=dtype, device=device, attn_implementation=attention)
    chosen = resolve(asker.model, method, **given)
    prompt = asker.questions([(images, question)])
    runs = measure(asker, prompt, [None, chosen]) if compare else measure(asker, prompt, [chosen], rounds=1)
    Console().print(table(runs))
    if overlay is not None:
        save(runs[-1].answer.trace.overlay(images[0]), overlay)
        typer.echo(f"overlay: {overlay.resolve()}")


def _split(inputs: list[str]) -> tuple[list[str], str]:
    from foveate.errors import InputError

    *files, question = inputs
    if not files or os.path.isfile(question):  # noqa: PTH113 - Path.is_file fails on texts longer than a file name
        raise InputError("Give the image file(s) first and the question last: foveate ask photo.jpg 'What is this?'")
    return files, question
