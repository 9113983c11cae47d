"""`foveate ask`: one question about images, answered by a pruned model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from foveate.core.method import Method
from foveate.trace.records import PrefillTrace, Trace


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
    from foveate.errors import InputError
    from foveate.inference.batches import build_batch
    from foveate.inference.loading import load

    *files, question = inputs
    if not files or os.path.isfile(question):  # noqa: PTH113 - Path.is_file fails on texts longer than a file name
        raise InputError("Give the image file(s) first and the question last: foveate ask photo.jpg 'What is this?'")
    images = [open_image(file) for file in files]
    chosen = choose_method(method, one_budget(keep) if keep else None, module, model or zoo.DEFAULT)
    loaded, processor = load(model or zoo.DEFAULT, dtype=dtype, device=device, attn_implementation=attention)
    prompt = build_batch(loaded, processor, [(images, question)])
    runs = [answer(loaded, processor, prompt, chosen, max_new_tokens, warm_up=compare)]
    if compare:
        runs.insert(0, answer(loaded, processor, prompt, None, max_new_tokens, warm_up=True))
    Console().print(table(runs))
    if overlay is not None:
        runs[-1].trace.overlay(images[0]).save(overlay)
        typer.echo(f"overlay: {overlay.resolve()}")


def one_budget(text: str) -> float | int:
    """The budget that `--keep` names, of which a question can have only one."""
    from foveate.errors import InputError
    from foveate.specs.settings import parse_keeps

    budgets = parse_keeps([text])
    if len(budgets) > 1:
        raise InputError(f"--keep {text}: one budget a question; `foveate eval` compares several.")
    return budgets[0]


def choose_method(name: str, keep: float | int | None, module: str | None, model: str) -> Method:
    """The method that the options ask for.

    Raises:
        ConfigurationError: unknown method, one that needs a module where there is none, or options without effect.
    """
    from foveate import zoo
    from foveate.engine.attach import read_method
    from foveate.errors import ConfigurationError
    from foveate.methods import find

    if name.endswith(".json"):
        if keep is not None or module is not None:
            raise ConfigurationError(f"{name} says what to keep and with which module; leave --keep and --module out.")
        return read_method(name)
    kind = find(name)
    fields = getattr(kind, "__dataclass_fields__", {})
    if module is not None and "module" not in fields:
        raise ConfigurationError(f"{kind.name} has no module; leave --module out, or ask for --method glimpse_prune.")
    parameters: dict[str, Any] = {}
    if "module" in fields:
        beside = Path(zoo.resolve(model)) / "glimpse"
        if module is None and not beside.is_dir():
            raise ConfigurationError(
                f"{kind.name} needs a trained module: --module FOLDER (there is none at {beside})."
            )
        parameters["module"] = module or beside
    if keep is not None:
        parameters["keep" if "keep" in fields else "max_keep"] = keep
    return kind(**parameters)


@dataclass(frozen=True)
class Answer:
    """What one run gave."""

    name: str
    text: str
    trace: Trace

    @property
    def prefill(self) -> PrefillTrace:
        """The run of median time to first token (all runs of one question keep the same tokens)."""
        runs = sorted(self.trace.prefills, key=lambda prefill: prefill.first_token_ms)
        return runs[len(runs) // 2]


def answer(
    model: Any, processor: Any, inputs: dict[str, Any], method: Method | None, tokens: int, warm_up: bool
) -> Answer:
    """Greedy answer; with `warm_up` the question is read four times, so that the median time is a typical one."""
    import foveate
    from foveate.inference.batches import generate

    with foveate.prune(model, method) as trace:
        for _ in range(3 if warm_up else 0):
            generate(model, processor, inputs, 1)
        (text,) = generate(model, processor, inputs, tokens)
    return Answer("unpruned" if method is None else method.name, text, trace)


def table(runs: list[Answer]) -> Table:
    """One column per run."""
    from foveate.trace.text import chain

    rows = Table("", *(run.name for run in runs), show_header=len(runs) > 1, box=None, pad_edge=False)
    last = [run.prefill for run in runs]
    rows.add_row("answer", *(f"[bold]{run.text}[/bold]" for run in runs))
    rows.add_row("visual tokens", *(chain(trace) for trace in last))
    rows.add_row("average per layer", *(f"{trace.keep_ratio:.1%}" for trace in last))
    rows.add_row("KV cache bytes", *(f"{trace.kv_bytes:,} ({_share(trace)})" for trace in last))
    rows.add_row("vision tower ms", *(f"{trace.vision.ms:.1f}" for trace in last))
    rows.add_row("of it reading ms", *(f"{trace.tapping.ms:.1f}" for trace in last))
    rows.add_row("LLM prefill ms", *(f"{trace.prefill.ms:.1f}" for trace in last))
    rows.add_row("of it selecting ms", *(f"{trace.selecting.ms:.1f}" for trace in last))
    rows.add_row("time to first token ms", *(f"{run.prefill.first_token_ms:.1f}{speedup(runs, run)}" for run in runs))
    return rows


def speedup(runs: list[Answer], run: Answer) -> str:
    """How much sooner the first token comes than in the first run; no number where the readings overlap.

    The first reading of each warms up; the later ones must lie apart altogether.
    """
    if run is runs[0]:
        return ""
    stock, own = ([p.first_token_ms for p in one.trace.prefills[1:]] for one in (runs[0], run))
    if not stock or not own or max(min(stock), min(own)) <= min(max(stock), max(own)):
        return " (about equal)"
    return f" ({runs[0].prefill.first_token_ms / run.prefill.first_token_ms:.2f}x)"


def _share(trace: Any) -> str:
    return f"{trace.kv_bytes / trace.kv_bytes_unpruned:.0%} of unpruned" if trace.kv_bytes_unpruned else "no cache"
