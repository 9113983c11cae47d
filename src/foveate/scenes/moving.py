"""Scenes that move: the same things in several frames; some stand still, most arrive late or leave early."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from PIL import Image

from . import draw
from .compose import add_shape, fresh_label, pick_kind, pick_size, pick_theme, reach_of, touch
from .scene import Box, Scene, Shape
from .spec import SceneSpec, Size

STEP = 2  # frames: what a Qwen tower merges. Things come, go and change their label between two steps.
SHORTEST_STAY = 6  # frames
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True)
class Mover:
    """A thing over time.

    Attributes:
        size: px.
        way: where it moves, a key of `WAYS`; empty if it stands still.
        frames: what it looks like in every frame; `None` where it is not there.
    """

    size: int
    way: str
    frames: tuple[Shape | None, ...]

    @property
    def shown(self) -> list[int]:
        """Frames in which it is there, without gaps."""
        return [t for t, shape in enumerate(self.frames) if shape]

    @property
    def shape(self) -> Shape:
        """What it is; its label and box are those of its first frame."""
        return next(shape for shape in self.frames if shape)


@dataclass(frozen=True)
class Film:
    """What a video shows: the things in it, and a picture and a description for each of its frames."""

    movers: list[Mover]
    scenes: list[Scene]
    images: list[Image.Image]


def compose_moving(seed: str, spec: SceneSpec, n: int, taken: Iterable[int] | None = None) -> Film:
    """Renders the moving scene of `seed`, `n` frames long, without panels; reproducible as `compose` is.

    Every thing stands still or moves straight to one side at constant speed, and never touches another. Sensor noise
    is drawn anew for every frame, as a camera's is; background and looks stay.

    Args:
        taken: the frames that are rendered, all by default.
    """
    rng = Random(seed)
    size = pick_size(rng, spec)
    movers = _movers(rng, size, spec, n)
    still = draw.background(Random(f"{seed}:background"), *size, spec.clutter)
    film = Film(movers, [], [])
    for t in range(n) if taken is None else taken:
        scene, image = Scene(f"{seed}:frame{t}", *size), still.copy()
        for i, mover in enumerate(movers):
            if shape := mover.frames[t]:
                add_shape(Random(f"{seed}:looks{i}"), image, scene, shape, mover.size)
        film.scenes.append(scene)
        film.images.append(draw.sensor_noise(Random(scene.seed), image, spec.noise))
    return film


def _movers(rng: Random, size: Size, spec: SceneSpec, n: int) -> list[Mover]:
    wanted, theme = rng.randint(*spec.shapes), pick_theme(rng)
    labels: set[str] = set()
    movers: list[Mover] = []
    for _ in range(90):
        if len(movers) == wanted:
            break
        px = rng.randint(*spec.shape_px)
        way, path = _path(rng, size, reach_of(px), n)
        first, last = _stay(rng, n)
        there = [box if first <= t <= last else None for t, box in enumerate(path)]
        if any(_collide(there, mover) for mover in movers):
            continue
        color, kind = pick_kind(rng, theme)
        shapes = [
            box and Shape(color, kind, label, box) for label, box in zip(_labels(rng, labels, n), there, strict=True)
        ]
        movers.append(Mover(px, way, tuple(shapes)))
    return movers


def _path(rng: Random, size: Size, reach: int, n: int) -> tuple[str, list[Box]]:
    """Where a thing goes and its boxes, `reach` px around its middle. One in four stands still; the others go 0.3 to
    0.6 of the image's width or height, as far as there is room.
    """
    way = "" if rng.random() < 0.25 else rng.choice(list(WAYS))
    far, direction = rng.uniform(0.3, 0.6), WAYS.get(way, (0, 0))
    starts, moves = [], []
    for side, sign in zip(size, direction, strict=True):
        move = sign * min(round(far * side), side - 2 * reach - 3)
        starts.append(rng.randint(reach + 1 + max(0, -move), side - reach - 1 - max(0, move)))
        moves.append(move)
    centers = [[at + round(move * t / (n - 1)) for at, move in zip(starts, moves, strict=True)] for t in range(n)]
    return way, [(x - reach, y - reach, x + reach, y + reach) for x, y in centers]


def _collide(boxes: list[Box | None], mover: Mover) -> bool:
    pairs = zip(boxes, mover.frames, strict=True)
    return any(box is not None and shape is not None and touch(box, shape.box) for box, shape in pairs)


def _labels(rng: Random, used: set[str], n: int) -> list[str]:
    """One label and, from some frame on, another, so that no single frame tells what was marked when."""
    change = rng.randrange(STEP, n, STEP)
    return [fresh_label(rng, used)] * change + [fresh_label(rng, used)] * (n - change)


def _stay(rng: Random, n: int) -> tuple[int, int]:
    """First and last frame of a thing: a third of them are there all the time, the others come late or leave early."""
    if rng.random() < 1 / 3:
        return 0, n - 1
    if rng.random() < 0.5:
        return rng.randrange(STEP, n - SHORTEST_STAY + 1, STEP), n - 1
    return 0, rng.randrange(SHORTEST_STAY, n, STEP) - 1
