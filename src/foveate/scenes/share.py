"""How much of a picture matters: the shares of visual tokens that show something, and that show what is asked about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .labels import CELL
from .moving import STEP
from .scene import Box, Scene
from .splits import Sample


@dataclass(frozen=True)
class TokenShares:
    """Of samples' tokens of 28 x 28 px (and, in videos, two frames).

    Attributes:
        tokens: a sample's, on average.
        foreground: share of them that a shape or a line of text touches.
        evidence: share of them that a box of evidence touches.
    """

    tokens: float
    foreground: float
    evidence: float


def shares(samples: Iterable[Sample]) -> TokenShares:
    """Means over samples, each counted alike; 0 without any."""
    found = [_shares(sample) for sample in samples]
    return (
        TokenShares(*(sum(each) / len(found) for each in zip(*found, strict=True))) if found else TokenShares(0, 0, 0)
    )


def _shares(sample: Sample) -> tuple[int, float, float]:
    shown = _steps([_touched(_things(scene), scene) for scene in sample.scenes], sample)
    asked = _steps([_touched(b, s) for b, s in zip(sample.evidence, sample.scenes, strict=True)], sample)
    return shown.size, float(shown.mean()), float(asked.mean())


def _things(scene: Scene) -> list[Box]:
    cells = [box for cell in scene.cells for box in (cell.row_box, cell.key_box, cell.value_box)]
    return [*(s.box for s in scene.shapes), *(b for f in scene.fields for b in (f.key_box, f.value_box)), *cells]


def _touched(boxes: Iterable[Box], scene: Scene) -> NDArray[np.bool_]:
    """Tokens that a box overlaps, `[rows, columns]`."""
    out = np.zeros((scene.height // CELL, scene.width // CELL), bool)
    for x0, y0, x1, y1 in boxes:
        rows, columns = (slice(max(0, int(low // CELL)), -int(-high // CELL)) for low, high in ((y0, y1), (x0, x1)))
        out[rows, columns] = True
    return out


def _steps(frames: list[NDArray[np.bool_]], sample: Sample) -> NDArray[np.bool_]:
    """Of all images, or of a video's pairs of frames, as one row of tokens."""
    if sample.fps is None:
        return np.concatenate([frame.ravel() for frame in frames])
    return np.stack(frames).reshape(-1, STEP, frames[0].size).any(1).ravel()
