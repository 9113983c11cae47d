"""A picture of what was kept: dropped patches are dimmed, in one colour per stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from foveate.core.grid import Grid
from foveate.core.tiles import Box, panels
from foveate.errors import InputError
from foveate.files.atomic import replacing
from foveate.trace.records import GroupTrace, PrefillTrace
from foveate.trace.text import where

COLOURS = ((24, 24, 32), (30, 90, 220), (235, 120, 10), (160, 40, 170), (20, 130, 95))
"""Tint of the tokens dropped at the first, second, ... stage."""
STRENGTH, KEPT = 0.55, (64, 220, 96)
"""The picture stays visible under a tint."""
LONGEST = 1500
"""Pixels of the longer side of what is drawn."""


def overlay(
    image: Image.Image,
    trace: PrefillTrace,
    row: int = 0,
    index: int = 0,
    frame: int = 0,
    stages: int | None = None,
) -> Image.Image:
    """The image with every token tinted by the stage that dropped it, and a legend below. An image in tiles is shown
    twice: tile by tile, and as the thumbnail that comes with them.

    Tokens alive in the last layer are clear with a green frame; a merged token stands at its target. Tokens that have
    no places (a resampler's) are only counted.

    Args:
        image: the picture that was asked about (any size).
        row, index: row of the batch, image within the row.
        frame: frame of a video.
        stages: show what the first so many stages did; default: all.

    Raises:
        InputError: there is no such image in the trace, or `image` is no PIL image.
    """
    group, numbers = find_group(trace, row, index, image)
    last = "kept to the end" if stages is None else f"left after stage {stages} of {len(group.steps)}"
    group = replace(group, steps=group.steps[:stages])
    starts = [sum(grid.size for grid in group.grids[:number]) for number in range(len(group.grids))]
    grids, dropped = [group.grids[number] for number in numbers], dropped_at(group)
    layers = [step.layer for step in group.steps]
    covers = panels(grids, image.width, image.height) if all(grid.placed for grid in grids) else [[]]
    own = [dropped[starts[number] :][: group.grids[number].size] for number in numbers]
    canvases = [_readable(image, len(covers)) for _ in covers]
    for canvas, panel in zip(canvases, covers, strict=True):
        for number, box in panel:
            paint(canvas, box, frame_of(own[number], grids[number], frame), len(layers))
    first, total = starts[numbers[0]], sum(grid.size for grid in grids)
    counts = [int((dropped[first : first + total] == s).sum()) for s in range(len(layers) + 1)]
    if not all(grid.placed for grid in grids):
        last += " (tokens without places in the picture)"
    return with_legend(_beside(canvases), layers, counts, last)


def _readable(image: Image.Image, covers: int) -> Image.Image:
    """The image enlarged so that something can be seen, or made smaller so that all its covers fit side by side."""
    enlarged = max(1, -(-640 // max(image.size)))
    scale = min(enlarged, LONGEST / max(image.width * covers, image.height))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def frame_of(stage: np.ndarray, grid: Grid, frame: int) -> np.ndarray:
    """`[h, w]` stages of one frame, in the picture's order."""
    placed = np.empty(grid, dtype=int)
    placed[tuple(grid.coordinates().T.numpy())] = stage
    found: np.ndarray = placed[min(frame, grid.t - 1)]
    return found


def paint(canvas: Image.Image, box: Box, stage: np.ndarray, last: int) -> None:
    """Tint a part of the picture."""
    left, top = round(box.left * canvas.width), round(box.top * canvas.height)
    right, bottom = round(box.right * canvas.width), round(box.bottom * canvas.height)
    canvas.paste(_tint(canvas.crop((left, top, right, bottom)), stage, last), (left, top))


def _beside(canvases: list[Image.Image]) -> Image.Image:
    """The picture once per cover: its tiles, then its thumbnail."""
    if len(canvases) == 1:
        return canvases[0]
    gap = 8
    page = Image.new("RGB", (sum(c.width + gap for c in canvases) - gap, canvases[0].height), "white")
    for number, canvas in enumerate(canvases):
        page.paste(canvas, (number * (canvas.width + gap), 0))
    return page


def overlays(image: Image.Image, trace: PrefillTrace, row: int = 0, index: int = 0) -> list[Image.Image]:
    """A picture after each stage, as `overlay`: the last one is that of all stages.

    Raises:
        InputError: there is no such image in the trace.
    """
    stages = len(find_group(trace, row, index)[0].steps)
    return [overlay(image, trace, row, index, stages=number) for number in range(1, stages)] + [
        overlay(image, trace, row, index)
    ]


def save(picture: Image.Image, path: Path) -> None:
    """Write the picture; the suffix chooses the format."""
    kind = Image.registered_extensions()[path.suffix.lower()]
    with replacing(path) as partial:
        picture.save(partial, kind)


def find_group(trace: PrefillTrace, row: int, index: int, image: object = None) -> tuple[GroupTrace, list[int]]:
    """The group of an image, and which of its grids are the image's. `image` is what is to be drawn on."""
    if image is not None and not isinstance(image, Image.Image):
        raise InputError(f"overlay takes the picture itself, not {type(image).__name__}: PIL.Image.open(path).")
    for group in trace.groups:
        number = index - group.image
        if group.row == row and 0 <= number < len(group.images):
            first = sum(group.images[:number])
            return group, list(range(first, first + group.images[number]))
    if not trace.groups:
        raise InputError("The last prefill read no image: there is nothing to draw.")
    raise InputError(f"The last prefill has no image {index} in row {row}.")


def dropped_at(group: GroupTrace) -> np.ndarray:
    """`[N]` number of the stage that dropped each token; the number of stages if it survived all."""
    stage = np.full(len(group.columns), len(group.steps))
    alive = np.ones(len(stage), dtype=bool)
    for number, step in enumerate(group.steps):
        survives = np.zeros(len(stage), dtype=bool)
        survives[torch.cat([step.alive, group.fixed]).cpu().numpy()] = True
        stage[alive & ~survives] = number
        alive = survives
    return stage


def _tint(canvas: Image.Image, stage: np.ndarray, last: int) -> Image.Image:
    height, width = stage.shape
    rows = (np.arange(canvas.height) * height) // canvas.height
    columns = (np.arange(canvas.width) * width) // canvas.width
    per_pixel = stage[rows][:, columns]
    pixels = np.asarray(canvas, dtype=np.float32)
    colours = np.array([COLOURS[s % len(COLOURS)] for s in range(last + 1)], dtype=np.float32)
    strength = np.where(per_pixel == last, 0.0, STRENGTH)[..., None].astype(np.float32)
    mixed = Image.fromarray((pixels * (1 - strength) + colours[per_pixel] * strength).astype(np.uint8))
    draw = ImageDraw.Draw(mixed)
    for y, x in zip(*np.nonzero(stage == last), strict=True):
        box = (x * canvas.width / width, y * canvas.height / height)
        end = ((x + 1) * canvas.width / width - 1, (y + 1) * canvas.height / height - 1)
        draw.rectangle((*box, *end), outline=KEPT, width=2)
    return mixed


def with_legend(canvas: Image.Image, layers: list[int], counts: list[int], last: str) -> Image.Image:
    line = max(20, min(48, canvas.width // 22))
    font = ImageFont.load_default(size=round(line * 0.68))
    entries = [(COLOURS[n % len(COLOURS)], f"{counts[n]} dropped {where(layer)}") for n, layer in enumerate(layers)]
    entries.append((KEPT, f"{counts[-1]} {last}"))
    page = Image.new("RGB", (canvas.width, canvas.height + line * len(entries) + 8), "white")
    page.paste(canvas, (0, 0))
    draw = ImageDraw.Draw(page)
    for number, (colour, text) in enumerate(entries):
        y = canvas.height + 6 + number * line
        draw.rectangle((8, y + 2, line, y + line - 6), fill=colour)
        draw.text((line + 8, y), text, fill="black", font=font)
    return page
