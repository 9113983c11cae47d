"""`foveate ask`: one question about images, answered by a pruned model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from foveate.cli.compare import measure, table
from foveate.cli.options import Attention, Device, Dtype


def ask(
    inputs: Annotated[
        list[str], typer.Argument(metavar="IMAGE... QUESTION", help="Image or video files, then the question.")
    ],
    model: Annotated[str | None, typer.Option(help="Folder or Hub id; default: the zoo model.")] = None,
    method: Annotated[str, typer.Option(help="A name of `foveate methods`, or a tuned foveate.json.")] = "vitcop",
    keep: Annotated[
        str | None, typer.Option(help="What to keep: 0.11, 1/9, or a number of visual tokens; default: the method's.")
    ] = None,
    module: Annotated[str | None, typer.Option(help="Glimpse module; default: `glimpse` beside the model.")] = None,
    overlay: Annotated[Path | None, typer.Option(help="Write a picture of what was kept (first image).")] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="So many frames of each video; default: the model's.")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Or so many frames a second.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also run unpruned, side by side.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    dtype: Dtype = None,
    device: Device = None,
    attention: Attention = None,
) -> None:
    """Ask a question about images or videos and show what pruning kept and saved."""
    from foveate import zoo
    from foveate.files.outputs import PICTURES, check_file
    from foveate.inference.answer import Asker
    from foveate.inference.pictures import picture
    from foveate.inference.pruning import resolve
    from foveate.specs.choose import choose_method, one_budget
    from foveate.trace.overlay import save

    files, question = _split(inputs)
    if overlay is not None:
        check_file(overlay, PICTURES)
    opened = _opened(files, frames, fps)
    given: dict[str, Any] = {"keep": one_budget(keep) if keep else None, "module": module}
    choose_method(method, model=model or zoo.DEFAULT, **given)  # a wrong name shows before a model is loaded
    asker = Asker.load(model or zoo.DEFAULT, max_new_tokens, dtype=dtype, device=device, attn_implementation=attention)
    chosen = resolve(asker.model, method, **given)
    shown = [_sampled(one, asker.processor, frames, fps) for one in opened]
    prompt = asker.questions([(shown, question)])
    runs = measure(asker, prompt, [None, chosen]) if compare else measure(asker, prompt, [chosen], rounds=1)
    Console().print(table(runs))
    if overlay is not None:
        save(picture(shown[0], runs[-1].answer.prefill), overlay)
        typer.echo(f"overlay: {overlay.resolve()}")


def _split(inputs: list[str]) -> tuple[list[str], str]:
    from foveate.errors import InputError

    *files, question = inputs
    if not files or os.path.isfile(question):  # noqa: PTH113 - Path.is_file fails on texts longer than a file name
        raise InputError("Give the image file(s) first and the question last: foveate ask photo.jpg 'What is this?'")
    return files, question


def _opened(files: list[str], frames: int | None, fps: float | None) -> list[Any]:
    """The images; of a video its file, once it is sure that it can be read."""
    from foveate.data.images import open_image
    from foveate.data.videos import FrameSampling, check_video, is_video
    from foveate.errors import InputError

    FrameSampling(frames, fps)
    if (frames or fps) and not any(map(is_video, files)):
        raise InputError("--frames and --fps are about videos, and none was given.")
    for file in filter(is_video, files):
        check_video(file)
    return [file if is_video(file) else open_image(file) for file in files]


def _sampled(one: Any, processor: Any, frames: int | None, fps: float | None) -> Any:
    """An image as it is, a video with the frames that the model's processor would take."""
    from foveate.data.videos import FrameSampling
    from foveate.inference.batches import sampled

    return (
        sampled(processor, one, FrameSampling(frames, fps) if frames or fps else None) if isinstance(one, str) else one
    )
