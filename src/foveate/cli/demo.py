"""`foveate demo`: the main job on the shipped model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from foveate.cli.show import plain


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
    from foveate.cli.ask import measure, table
    from foveate.data.images import open_image
    from foveate.errors import InputError
    from foveate.files.outputs import PICTURES, check_file
    from foveate.inference.answer import Asker
    from foveate.specs.choose import one_budget
    from foveate.trace.overlay import save

    console = Console()
    if image is not None and question is None:
        raise InputError("--image needs a --question to go with it.")
    check_file(out, PICTURES)
    picture, text, truth = (open_image(image), question or "", None) if image else _scene(scene, question)
    methods = _methods(zoo.resolve(zoo.DEFAULT), one_budget(keep))
    asker = Asker.load(zoo.DEFAULT, 16)
    inputs = asker.questions([([picture], text)])
    runs = [measure(asker, inputs, method) for method in methods]
    where = f" on {image or f'rendered scene {scene}'} ({picture.size[0]} x {picture.size[1]})"
    console.print(Text.assemble((zoo.DEFAULT, "bold"), plain(where)))
    console.print(Text.assemble("question: ", plain(text, "bold"), f"   (true answer: {truth})" if truth else ""))
    console.print(table(runs))
    save(runs[1].answer.trace.overlay(picture), out)
    console.print(plain(f"what {runs[1].name} kept, stage by stage: {out.resolve()}"), soft_wrap=True)


def _scene(number: int, question: str | None) -> tuple[Any, str, str | None]:
    from foveate import scenes

    sample = scenes.load("test", 1, number)[0]
    return sample.images[0], question or sample.question, None if question else sample.answer


def _methods(folder: str, keep: float | int) -> list[Any]:
    from foveate.methods import GlimpsePrune, ViTCoP

    glimpse = Path(folder) / "glimpse"
    return [None, ViTCoP(keep=keep), *([GlimpsePrune(glimpse)] if glimpse.is_dir() else [])]
