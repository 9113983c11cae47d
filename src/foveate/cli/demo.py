"""`foveate demo`: the main job on the shipped model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from foveate.cli.show import plain
from foveate.zoo import ONLY_SCENES

if TYPE_CHECKING:
    from PIL import Image

    from foveate.cli.compare import Column
    from foveate.inference.answer import Asker

PIXELS = 1_100_000
"""Largest picture: the built-in scenes make 1,008 visual tokens, so that pruning has something to save."""
ALREADY_READ = (
    "A tint says where a token was dropped, not that nobody saw it: what was dropped before layer k had been read by "
    "the text in layers 0 to k-1."
)


def demo(
    image: Annotated[Path | None, typer.Option(help="A picture of your own; default: a rendered scene.")] = None,
    question: Annotated[str | None, typer.Option(help="Your question; default: the scene's.")] = None,
    out: Annotated[Path, typer.Option(help="Picture of what was kept.")] = Path("demo.png"),
    keep: Annotated[str, typer.Option(help="What ViTCoP keeps: 0.11, 1/9, or a number of visual tokens.")] = "1/9",
    scene: Annotated[
        int, typer.Option(min=0, help="Number of the rendered scene; 4 is one that every setting answers.")
    ] = 4,
) -> None:
    """Ask the shipped model a question: unpruned, with ViTCoP's schedule and with GlimpsePrune, side by side."""
    from foveate import zoo
    from foveate.cli.compare import measure, table
    from foveate.data.images import open_image
    from foveate.errors import InputError
    from foveate.files.outputs import PICTURES, check_file
    from foveate.specs.grammar import one_budget
    from foveate.trace.overlay import save

    console = Console()
    if image is not None and question is None:
        raise InputError("--image needs a --question to go with it.")
    check_file(out, PICTURES)
    picture, text, truth = (open_image(image), question or "", None) if image else _scene(scene, question)
    methods = _methods(zoo.resolve(zoo.DEFAULT), one_budget(keep))
    asker = _asker(zoo.DEFAULT)
    runs = measure(asker, asker.questions([([picture], text)]), methods)
    where = f" on {image or f'rendered scene {scene}'} ({picture.size[0]} x {picture.size[1]})"
    console.print(Text.assemble((zoo.DEFAULT, "bold"), plain(where)))
    console.print(Text.assemble("question: ", plain(text, "bold"), f"   (true answer: {truth})" if truth else ""))
    console.print(table(runs))
    save(_sheet(picture, text, truth, runs), out)
    console.print(plain(f"what was kept, stage by stage: {out.resolve()}"), soft_wrap=True)
    console.print(plain(f"{ALREADY_READ}\n{ONLY_SCENES}", "dim"))


def _asker(model: str) -> Asker:
    """The model, for larger pictures than it was trained on."""
    from foveate.inference.answer import Asker

    asker = Asker.load(model, 16)
    size = asker.processor.image_processor.size
    asker.processor.image_processor.size = {"shortest_edge": size["shortest_edge"], "longest_edge": PIXELS}
    return asker


def _scene(number: int, question: str | None) -> tuple[Any, str, str | None]:
    from foveate.scenes.compose import compose
    from foveate.scenes.questions import ask
    from foveate.scenes.spec import SceneSpec

    spec = SceneSpec(
        (((1008, 784), 1.0),), shapes=(4, 7), rows=(3, 5), panel_share=1.0, shape_px=(50, 80), font_px=(20, 26),
        clutter=(6, 20),
    )  # fmt: skip
    shown, picture = compose(f"demo:{number}", spec)
    asked = Random(number).choice(ask(shown, Random(number), ["read_field"]))
    return picture, question or asked.text, None if question else asked.answer


def _methods(folder: str, keep: float | int) -> list[Any]:
    from foveate.methods import GlimpsePrune, ViTCoP

    glimpse = Path(folder) / "glimpse"
    # of a small budget half of the tokens need not even enter the tower, which is where this model's time goes
    tower = 0.5 if isinstance(keep, float) and keep <= 1 / 3 else None
    return [None, ViTCoP(keep=keep, tower=tower), *([GlimpsePrune(glimpse)] if glimpse.is_dir() else [])]


def _sheet(picture: Image.Image, question: str, truth: str | None, runs: Sequence[Column]) -> Image.Image:
    """Original and overlays side by side, with the answers."""
    from foveate.trace.sheet import sheet

    shown = [(f"original, unpruned: {runs[0].answer.text}", picture)]
    for run in runs[1:]:
        kept = f"{run.prefill.keep_ratio:.0%} of the visual tokens per layer"
        shown.append((f"{run.name}: {run.answer.text} ({kept})", run.answer.trace.overlay(picture)))
    true = f" True answer: {truth}." if truth else ""
    return sheet(shown, f"{question}{true}\n{ONLY_SCENES}\n{ALREADY_READ}")
