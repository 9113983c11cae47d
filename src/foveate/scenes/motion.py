"""Questions about a video: about its first or last moment, and about what moves, comes and goes.

| type        | example                                            | boxes |
|-------------|----------------------------------------------------|-------|
| any other   | At the end, how many blue shapes are there?        | as in `questions`, in that frame |
| `direction` | Which way does the red circle move?                | the circle, in every frame |
| `moves`     | Does the red circle move?                          | the circle, in every frame |
| `appears`   | What color is the shape that appears last?         | the shape, in every frame |
| `leaves`    | Which shape leaves first?                          | the shape, in every frame |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from .moving import Film, Mover
from .questions import Question, ask
from .scene import Box

MOMENT_TYPES = ["read_shape", "color_of", "count", "exists"]
MOTION_TYPES = ["direction", "moves", "appears", "leaves"]
VIDEO_TYPES = MOMENT_TYPES + MOTION_TYPES


@dataclass(frozen=True)
class VideoQuestion:
    """A question, the frame that its boxes lie in, and the evidence in every frame, `[frames][boxes]`."""

    question: Question
    frame: int
    evidence: tuple[tuple[Box, ...], ...]


def ask_video(film: Film, rng: Random, types: Sequence[str] = tuple(VIDEO_TYPES)) -> list[VideoQuestion]:
    """Every question of the given types that `film`, rendered whole, can answer; `rng` picks the wording."""
    out: list[VideoQuestion] = []
    for name in types:
        out += _MOTION[name](film, rng) if name in _MOTION else _moment(film, rng, name)
    return out


def _moment(film: Film, rng: Random, name: str) -> list[VideoQuestion]:
    out = []
    for when, frame in (("start", 0), ("end", len(film.scenes) - 1)):
        for q in ask(film.scenes[frame], rng, [name]):
            text = f"At the {when}, {q.text[0].lower()}{q.text[1:]}"
            evidence = tuple(q.boxes if t == frame else () for t in range(len(film.scenes)))
            out.append(VideoQuestion(Question(name, text, q.answer, q.boxes, q.targets), frame, evidence))
    return out


def _about(mover: Mover, name: str, text: str, answer: str) -> VideoQuestion:
    frame = mover.shown[len(mover.shown) // 2]
    boxes = tuple((shape.box,) if shape else () for shape in mover.frames)
    return VideoQuestion(Question(name, text, answer, boxes[frame], boxes[frame]), frame, boxes)


def _named(film: Film) -> list[Mover]:
    """Things whose colour and kind name one thing in the whole video."""
    names = [mover.shape.name for mover in film.movers]
    return [mover for mover in film.movers if names.count(mover.shape.name) == 1]


def _direction(film: Film, rng: Random) -> list[VideoQuestion]:
    asked = [mover for mover in _named(film) if mover.way]
    return [_about(m, "direction", f"Which way does the {m.shape.name} move?", m.way) for m in asked]


def _moves(film: Film, rng: Random) -> list[VideoQuestion]:
    return [_about(m, "moves", f"Does the {m.shape.name} move?", "yes" if m.way else "no") for m in _named(film)]


def _appears(film: Film, rng: Random) -> list[VideoQuestion]:
    last = max((mover.shown[0] for mover in film.movers), default=0)
    found = [mover for mover in film.movers if mover.shown[0] == last > 0]
    return _event(film, found, "appears", "appears last", rng)


def _leaves(film: Film, rng: Random) -> list[VideoQuestion]:
    first, end = min((mover.shown[-1] for mover in film.movers), default=0), len(film.scenes) - 1
    found = [mover for mover in film.movers if mover.shown[-1] == first < end]
    return _event(film, found, "leaves", "leaves first", rng)


def _event(film: Film, found: list[Mover], name: str, event: str, rng: Random) -> list[VideoQuestion]:
    """Asked about where it is a single thing's that no other could be taken for."""
    if len(found) != 1 or found[0] not in _named(film):
        return []
    shape, color = found[0].shape, rng.choice(["color", "colour"])
    return [
        _about(found[0], name, f"What {color} is the shape that {event}?", shape.color),
        _about(found[0], name, f"Which shape {event}?", shape.name),
    ]


_MOTION: dict[str, Callable[[Film, Random], list[VideoQuestion]]] = {
    "direction": _direction,
    "moves": _moves,
    "appears": _appears,
    "leaves": _leaves,
}
