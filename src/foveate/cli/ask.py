"""`foveate ask`: one question about images, answered by a pruned model."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from foveate.cli.compare import Column, measure, table
from foveate.cli.options import Attention, Device, Dtype
from foveate.cli.show import harmless

if TYPE_CHECKING:
    from foveate.core.method import Method
    from foveate.inference.answer import Asker

Model = Annotated[str | None, typer.Option(help="Folder or Hub id; default: the zoo model.")]
OneMethod = Annotated[
    str, typer.Option(help="`foveate methods`: name, name:parameter=value,..., several with +, or a foveate.json.")
]
OneKeep = Annotated[
    str | None, typer.Option(help="What to keep: 0.11, 1/9, 11%, or a number of tokens; default: the method's.")
]
Module = Annotated[str | None, typer.Option(help="Glimpse module; default: `glimpse` beside the model.")]
Url = Annotated[bool, typer.Option("--url", help="Fetch pictures that are named by http(s) addresses.")]


def ask(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE... QUESTION", help="Image or video files, folders or -, then the question."),
    ],
    model: Model = None,
    method: OneMethod = "vitcop",
    keep: OneKeep = None,
    module: Module = None,
    overlay: Annotated[Path | None, typer.Option(help="Write a picture of what was kept (first image).")] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="So many frames of each video; default: the model's.")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Or so many frames a second.")] = None,
    url: Url = False,
    compare: Annotated[bool, typer.Option("--compare", help="Also run unpruned, side by side.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    dtype: Dtype = None,
    device: Device = None,
    attention: Attention = None,
) -> None:
    """Ask a question about images or videos and show what pruning kept and saved."""
    from foveate import zoo
    from foveate.cli.pictures import opened, sampled
    from foveate.files.outputs import PICTURES, check_file
    from foveate.inference.answer import Asker
    from foveate.inference.pictures import picture
    from foveate.inference.pruning import resolve
    from foveate.specs.choose import choose_method
    from foveate.specs.grammar import one_budget
    from foveate.trace.overlay import save

    files, question = _split(inputs)
    if overlay is not None:
        check_file(overlay, PICTURES)
    found = opened(files, url, frames, fps)
    name = model or zoo.DEFAULT
    given: dict[str, Any] = {"keep": one_budget(keep) if keep else None, "module": module}
    choose_method(method, model=name, **given)  # a wrong name shows before a model is loaded
    if model is None and sys.stderr.isatty():
        typer.echo(f"{zoo.ONLY_SCENES} --model names another.", err=True)
    asker = Asker.load(name, max_new_tokens, dtype=dtype, device=device, attn_implementation=attention)
    chosen = resolve(asker.model, method, **given)
    shown = [sampled(one, asker.processor, frames, fps) for one in found]
    runs = _runs(asker, asker.questions([(shown, question)]), chosen, compare, stream=not as_json)
    if overlay is not None:
        save(picture(shown[0], runs[-1].answer.prefill), overlay)
    where = None if overlay is None else str(overlay.resolve())
    if as_json:
        told = {"format": "foveate.answer/1", "model": name, "question": question, "images": len(shown)}
        typer.echo(json.dumps(told | {"overlay": where, "answers": [_plain(run) for run in runs]}, ensure_ascii=False))
    elif where is not None:
        typer.echo(f"overlay: {where}")


def _runs(asker: Asker, prompt: dict[str, Any], chosen: Method | None, compare: bool, stream: bool) -> list[Column]:
    """The answers; on a terminal a single one is shown as it comes."""
    if compare or not stream or not sys.stdout.isatty():
        runs = measure(asker, prompt, [None, chosen]) if compare else measure(asker, prompt, [chosen], rounds=1)
        if stream:
            Console().print(table(runs))
        return runs
    begun = time.perf_counter()
    pieces = asker.stream(prompt, chosen)
    show(pieces)
    runs = [Column(chosen, [pieces.answer], [1000 * (time.perf_counter() - begun)])]
    typer.echo()
    Console().print(table(runs, with_answer=False))
    return runs


def show(pieces: Iterable[str]) -> None:
    """Write text as it comes, and end the line."""
    for piece in pieces:
        sys.stdout.write(harmless(piece))
        sys.stdout.flush()
    sys.stdout.write("\n")


def _plain(run: Column) -> dict[str, Any]:
    """One answer with what it took, as JSON values."""
    answer, trace = run.answer, run.prefill
    return {
        "method": None if run.method is None else str(run.method),
        "text": answer.text,
        "stop": answer.stop,
        "tokens": len(answer.tokens),
        "visual_tokens": answer.visual_tokens,
        "kept_tokens": answer.kept_tokens,
        "alive_per_layer": trace.alive_per_layer(),
        "kv_bytes": trace.kv_bytes,
        "kv_bytes_unpruned": trace.kv_bytes_unpruned,
        "first_token_ms": run.first_tokens,
        "total_ms": list(run.totals),
        "notes": list(trace.notes),
    }


def _split(inputs: list[str]) -> tuple[list[str], str]:
    from foveate.errors import InputError

    *files, question = inputs
    if not files or os.path.isfile(question):  # noqa: PTH113 - Path.is_file fails on texts longer than a file name
        raise InputError("Give the image file(s) first and the question last: foveate ask photo.jpg 'What is this?'")
    return files, question
