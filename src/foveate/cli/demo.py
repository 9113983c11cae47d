"""`foveate demo`: the main job on the shipped model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console


def demo(
    image: Annotated[Path | None, typer.Option(help="A picture of your own; default: a rendered scene.")] = None,
    question: Annotated[str | None, typer.Option(help="Your question; default: the scene's.")] = None,
    out: Annotated[Path, typer.Option(help="Picture of what was kept.")] = Path("demo.png"),
    keep: Annotated[str, typer.Option(help="What ViTCoP keeps: 0.11, 1/9, or a number of visual tokens.")] = "1/9",
    scene: Annotated[
        int, typer.Option(min=0, help="Number of the rendered scene (test split); 9 is one that every setting answers.")
    ] = 9,
) -> None:
    """Ask the shipped model a question: unpruned, with ViTCoP and with GlimpsePrune, side by side."""
    from foveate import zoo
    from foveate.cli.ask import answer, one_budget, table
    from foveate.data.images import open_image
    from foveate.errors import InputError
    from foveate.inference.batches import build_batch
    from foveate.inference.loading import load

    console = Console()
    if image is not None and question is None:
        raise InputError("--image needs a --question to go with it.")
    picture, text, truth = (open_image(image), question or "", None) if image else _scene(scene, question)
    methods = _methods(zoo.resolve(zoo.DEFAULT), one_budget(keep))
    model, processor = load(zoo.DEFAULT)
    inputs = build_batch(model, processor, [([picture], text)])
    runs = [answer(model, processor, inputs, m, 16, warm_up=True) for m in methods]
    console.print(
        f"[bold]{zoo.DEFAULT}[/bold] on {image or f'rendered scene {scene}'} ({picture.size[0]} x {picture.size[1]})"
    )
    console.print(f"question: [bold]{text}[/bold]" + (f"   (true answer: {truth})" if truth else ""))
    console.print(table(runs))
    runs[1].trace.overlay(picture).save(out)
    console.print(f"what {runs[1].name} kept, stage by stage: {out.resolve()}")


def _scene(number: int, question: str | None) -> tuple[Any, str, str | None]:
    from foveate import scenes

    sample = scenes.load("test", 1, number)[0]
    return sample.images[0], question or sample.question, None if question else sample.answer


def _methods(folder: str, keep: float | int) -> list[Any]:
    from foveate.methods import GlimpsePrune, ViTCoP

    glimpse = Path(folder) / "glimpse"
    return [None, ViTCoP(keep=keep), *([GlimpsePrune(glimpse)] if glimpse.is_dir() else [])]
