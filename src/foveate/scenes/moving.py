"""Scenes that move: the same things in several frames; each changes its label, most arrive late or leave early."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from PIL import Image

from . import draw
from .compose import add_shape, fresh_label, pick_kind, pick_size, pick_theme, place, touch
from .scene import Box, Scene, Shape
from .spec import SceneSpec, Size


@dataclass(frozen=True)
class _Mover:
    """A thing on its way: where it is and what it carries in every frame; `None` where it is not there."""

    size: int
    frames: tuple[Shape | None, ...]


def compose_moving(seed: str, spec: SceneSpec, n: int) -> list[tuple[Scene, Image.Image]]:
    """Renders `n` frames (at least two) of the moving scene of `seed`, without panels; reproducible as `compose` is.

    Every thing moves in a straight line at constant speed and never touches another. Sensor noise is drawn anew
    for every frame, as a camera's is; background and looks stay.
    """
    rng = Random(seed)
    size = pick_size(rng, spec)
    movers = _movers(rng, size, spec, n)
    still = draw.background(Random(f"{seed}:background"), *size, spec.clutter)
    frames = []
    for t in range(n):
        scene, image = Scene(f"{seed}:frame{t}", *size), still.copy()
        for i, mover in enumerate(movers):
            if shape := mover.frames[t]:
                add_shape(Random(f"{seed}:looks{i}"), image, scene, shape, mover.size)
        frames.append((scene, draw.sensor_noise(Random(scene.seed), image, spec.noise)))
    return frames


def _movers(rng: Random, size: Size, spec: SceneSpec, n: int) -> list[_Mover]:
    wanted, theme = rng.randint(*spec.shapes), pick_theme(rng)
    labels: set[str] = set()
    movers: list[_Mover] = []
    for _ in range(60):
        if len(movers) == wanted:
            break
        px = rng.randint(*spec.shape_px)
        path = _path(place(rng, *size, px), place(rng, *size, px), n)
        if any(_collide(path, mover) for mover in movers):
            continue
        color, kind = pick_kind(rng, theme)
        shapes = [Shape(color, kind, label, box) for label, box in zip(_labels(rng, labels, n), path, strict=True)]
        first, last = _stay(rng, n)
        movers.append(_Mover(px, tuple(s if first <= t <= last else None for t, s in enumerate(shapes))))
    return movers


def _path(start: Box, end: Box, n: int) -> list[Box]:
    return [_between(start, end, t / (n - 1)) for t in range(n)]


def _between(a: Box, b: Box, at: float) -> Box:
    x0, y0, x1, y1 = (round(p + (q - p) * at) for p, q in zip(a, b, strict=True))
    return x0, y0, x1, y1


def _collide(path: list[Box], mover: _Mover) -> bool:
    return any(shape is not None and touch(box, shape.box) for box, shape in zip(path, mover.frames, strict=True))


def _labels(rng: Random, used: set[str], n: int) -> list[str]:
    """One label and, from some frame on, another, so that no single frame tells what was marked when."""
    change = rng.randint(1, n - 1)
    return [fresh_label(rng, used)] * change + [fresh_label(rng, used)] * (n - change)


def _stay(rng: Random, n: int) -> tuple[int, int]:
    """First and last frame of a thing: at least a third of them are there all the time."""
    if rng.random() < 1 / 3:
        return 0, n - 1
    first = rng.randrange(n)
    return (first, n - 1) if rng.random() < 0.5 else (0, first)
