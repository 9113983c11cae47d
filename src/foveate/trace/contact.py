"""A video's frames on one page, each with what was kept of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from foveate.core.grid import Grid
from foveate.errors import InputError
from foveate.trace.overlay import dropped_at, find_group, frame_of, paint, with_legend
from foveate.trace.records import PrefillTrace
from foveate.trace.sheet import WIDEST, sheet
from foveate.trace.tiles import Box


def contact_sheet(
    frames: Sequence[Image.Image],
    trace: PrefillTrace,
    row: int = 0,
    index: int = 0,
    seconds: Sequence[float] = (),
    widest: int = WIDEST,
) -> Image.Image:
    """The frames of a video, tinted by the stage that dropped each token as in `overlay`, and one legend.

    Where several frames make one step in time (Qwen's two), the first of them is shown.

    Args:
        frames: those that the model was given, in order, of one size.
        row, index: row of the batch, image or video within the row.
        seconds: when each frame is shown, for its title.

    Raises:
        InputError: no such video in the trace, or fewer frames than it has steps in time.
    """
    group, numbers = find_group(trace, row, index)
    before = sum(grid.size for grid in group.grids[: numbers[0]])
    grids = [group.grids[number] for number in numbers]
    steps = sum(grid.t for grid in grids)
    if not 0 < steps <= len(frames):
        raise InputError(f"The video has {steps} steps in time in the trace, but {len(frames)} frames were given.")
    layers = [step.layer for step in group.steps]
    dropped = dropped_at(group)[before:][: sum(grid.size for grid in grids)]
    panels = _panels(frames, grids, dropped, len(layers), seconds, widest)
    counts = [int((dropped == stage).sum()) for stage in range(len(layers) + 1)]
    across = math.ceil(math.sqrt(steps))
    rows = [sheet(panels[first : first + across], "", widest) for first in range(0, steps, across)]
    return with_legend(_below(rows), layers, counts, "kept to the end")


def _panels(
    frames: Sequence[Image.Image],
    grids: Sequence[Grid],
    dropped: np.ndarray,
    last: int,
    seconds: Sequence[float],
    widest: int,
) -> list[tuple[str, Image.Image]]:
    """A title and a tinted frame for each step in time."""
    steps = sum(grid.t for grid in grids)
    found: list[tuple[str, Image.Image]] = []
    begin = 0
    for grid in grids:
        own = dropped[begin : begin + grid.size]
        for time in range(grid.t):
            number = len(found) * len(frames) // steps
            canvas = frames[number].convert("RGB").resize(_size(frames[number], steps, widest))
            paint(canvas, Box(), frame_of(own, grid, time), last)
            found.append((f"{seconds[number]:.1f} s" if len(seconds) > number else f"frame {number + 1}", canvas))
        begin += grid.size
    return found


def _size(frame: Image.Image, steps: int, widest: int) -> tuple[int, int]:
    """Of one frame, so that all rows have one width."""
    width = widest // math.ceil(math.sqrt(steps)) - 16
    return width, max(1, round(frame.height * width / frame.width))


def _below(rows: Sequence[Image.Image]) -> Image.Image:
    page = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        page.paste(row, (0, top))
        top += row.height
    return page
