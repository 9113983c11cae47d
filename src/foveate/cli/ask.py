"""`foveate ask`: one question about images, answered by a pruned model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from foveate.cli.show import add_row, make_table, plain

if TYPE_CHECKING:
    from foveate.core.method import Method
    from foveate.inference.answer import Answer, Asker
    from foveate.trace.records import PrefillTrace


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
    runs = [measure(asker, prompt, None)] if compare else []
    runs.append(measure(asker, prompt, chosen) if compare else Column(chosen, asker.answer(prompt, chosen)[0]))
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


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        readings: prefills of this prompt (the first reads cold); none: that of the answer.
    """

    method: Method | None
    answer: Answer
    readings: Sequence[PrefillTrace] = ()

    @property
    def name(self) -> str:
        return "unpruned" if self.method is None else self.method.name

    @property
    def prefill(self) -> PrefillTrace:
        """The reading of median time to first token (all of one question keep the same tokens)."""
        runs = sorted(self.readings or [self.answer.prefill], key=lambda reading: reading.first_token_ms)
        return runs[len(runs) // 2]


def measure(asker: Asker, prompt: dict[str, Any], method: Method | None) -> Column:
    """An answer to a question that is read four times, so that the median time is a typical one."""
    readings = [asker.answer(prompt, method, max_new_tokens=1)[0].prefill for _ in range(3)]
    answer = asker.answer(prompt, method)[0]
    return Column(method, answer, [*readings, answer.prefill])


def table(runs: Sequence[Column]) -> Table:
    """One column per run."""
    from foveate.trace.text import chain

    rows = make_table(["", *(run.name for run in runs)], left=True, show_header=len(runs) > 1, box=None, pad_edge=False)
    last = [run.prefill for run in runs]
    add_row(rows, "answer", *(plain(run.answer.text, "bold") for run in runs))
    add_row(rows, "visual tokens", *(chain(trace) for trace in last))
    add_row(rows, "average per layer", *(f"{trace.keep_ratio:.1%}" for trace in last))
    add_row(rows, "KV cache bytes", *(f"{trace.kv_bytes:,} ({_share(trace)})" for trace in last))
    add_row(rows, "vision tower ms", *(f"{trace.vision.ms:.1f}" for trace in last))
    add_row(rows, "of it reading ms", *(f"{trace.tapping.ms:.1f}" for trace in last))
    add_row(rows, "LLM prefill ms", *(f"{trace.prefill.ms:.1f}" for trace in last))
    add_row(rows, "of it selecting ms", *(f"{trace.selecting.ms:.1f}" for trace in last))
    add_row(rows, "time to first token ms", *(f"{run.prefill.first_token_ms:.1f}{speedup(runs, run)}" for run in runs))
    return rows


def speedup(runs: Sequence[Column], run: Column) -> str:
    """How much sooner the first token comes than in the first run; no number where the readings overlap.

    The first reading of each warms up; the later ones must lie apart altogether.
    """
    if run is runs[0]:
        return ""
    stock, own = ([reading.first_token_ms for reading in one.readings[1:]] for one in (runs[0], run))
    if not stock or not own or max(min(stock), min(own)) <= min(max(stock), max(own)):
        return " (about equal)"
    return f" ({runs[0].prefill.first_token_ms / run.prefill.first_token_ms:.2f}x)"


def _share(trace: Any) -> str:
    return f"{trace.kv_bytes / trace.kv_bytes_unpruned:.0%} of unpruned" if trace.kv_bytes_unpruned else "no cache"
