"""Questions about a scene, with answer, type and the boxes that hold the evidence.

Every question type, what it needs of an image, and what its evidence boxes are:

| type         | example                                  | needs      | boxes |
|--------------|------------------------------------------|------------|-------|
| `read_shape` | What number is on the red star?          | local      | the star |
| `color_of`   | What color is the square marked K?       | local      | the square |
| `shape_of`   | What shape is marked 7?                  | local      | that shape |
| `read_field` | What is the total?                       | local      | the panel's line |
| `field_of`   | Which field shows 42?                    | local      | the panel's line |
| `read_cell`  | What is the price in row B?              | local      | the value, its line's name, its column's head |
| `relational` | What is left of the red star?            | relational | the star and its neighbour |
| `count`      | How many blue shapes are there?          | global     | the blue shapes, all shapes if none is |
| `count_all`  | How many shapes are there?               | global     | all shapes |
| `exists`     | Is there any green circle?               | global     | the circle, all shapes if there is none |

Tables stand on pages only (`document`); what is asked about videos besides is in `motion`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from .palette import COLOR_NAMES, DIRECTIONS, SHAPES
from .relations import neighbour
from .scene import Box, Scene, Shape

NEEDS = {
    "read_shape": "local",
    "color_of": "local",
    "shape_of": "local",
    "read_field": "local",
    "field_of": "local",
    "relational": "relational",
    "count": "global",
    "count_all": "global",
    "exists": "global",
    "read_cell": "local",
    "direction": "motion",
    "moves": "motion",
    "appears": "motion",
    "leaves": "motion",
}
TYPES = list(NEEDS)[:9]  # of a scene
DOCUMENT_TYPES = ["read_field", "field_of", "read_cell"]


@dataclass(frozen=True)
class Question:
    """`boxes` hold the evidence; `targets` the places an answer is read off (none where nothing matches)."""

    type: str
    text: str
    answer: str
    boxes: tuple[Box, ...]
    targets: tuple[Box, ...]


def _boxes(shapes: Sequence[Shape]) -> tuple[Box, ...]:
    return tuple(s.box for s in shapes)


def _read_shape(scene: Scene, rng: Random) -> list[Question]:
    out = []
    for s in scene.unique():
        verb = rng.choice([f"What {s.label_kind} is in", f"What {s.label_kind} is on", "What is written in"])
        out.append(Question("read_shape", f"{verb} the {s.name}?", s.label, (s.box,), (s.box,)))
    return out


def _color_of(scene: Scene, rng: Random) -> list[Question]:
    out = []
    for s in scene.shapes:
        text = f"What {rng.choice(['color', 'colour'])} is the {rng.choice(['shape', s.shape])} marked {s.label}?"
        out.append(Question("color_of", text, s.color, (s.box,), (s.box,)))
    return out


def _shape_of(scene: Scene, rng: Random) -> list[Question]:
    out = []
    for s in scene.shapes:
        text = rng.choice([f"What shape is marked {s.label}?", f"Which shape contains the {s.label_kind} {s.label}?"])
        out.append(Question("shape_of", text, s.shape, (s.box,), (s.box,)))
    return out


def _read_field(scene: Scene, rng: Random) -> list[Question]:
    out = []
    for f in scene.fields:
        text = rng.choice(["What is the {}?", "What value is shown for {}?", "Read the {} field."]).format(f.key)
        out.append(Question("read_field", text, f.value, (f.box,), (f.value_box,)))
    return out


def _field_of(scene: Scene, rng: Random) -> list[Question]:
    out = []
    for f in scene.fields:
        text = f"Which field {rng.choice(['shows', 'has the value'])} {f.value}?"
        out.append(Question("field_of", text, f.key, (f.box,), (f.value_box,)))
    return out


def _read_cell(scene: Scene, rng: Random) -> list[Question]:
    out = []
    for c in scene.cells:
        text = rng.choice(["What is the {} in row {}?", "Read the {} in row {}."]).format(c.key, c.row)
        out.append(Question("read_cell", text, c.value, (c.row_box, c.key_box, c.value_box), (c.value_box,)))
    return out


def _relational(scene: Scene, rng: Random) -> list[Question]:
    out = []
    for anchor in scene.unique():
        for direction in DIRECTIONS:
            if other := neighbour(scene, anchor, direction):
                text = f"What is {direction} the {anchor.name}?"
                boxes = (anchor.box, other.box)
                out.append(Question("relational", text, other.name, boxes, boxes))
    return out


def _count(scene: Scene, rng: Random) -> list[Question]:
    """Up to three counts of what is there and, in half of the scenes, one of what may not be."""
    pairs = [(s.color, s.shape) for s in scene.shapes]
    kinds = sorted({("", s) for _, s in pairs} | {(c, "") for c, _ in pairs} | set(pairs))
    picks = rng.sample(kinds, min(3, len(kinds)))
    if rng.random() < 0.5:
        color, shape = rng.choice(COLOR_NAMES), rng.choice(SHAPES)
        picks.append(rng.choice([("", shape), (color, ""), (color, shape)]))
    out = []
    for color, shape in dict.fromkeys(picks):
        found = scene.find(color or None, shape or None)
        what = f"{color} {shape or 'shape'}s".strip()
        boxes = _boxes(found or scene.shapes)
        out.append(Question("count", f"How many {what} are there?", str(len(found)), boxes, _boxes(found)))
    return out


def _count_all(scene: Scene, rng: Random) -> list[Question]:
    boxes = _boxes(scene.shapes)
    return [Question("count_all", "How many shapes are there?", str(len(boxes)), boxes, boxes)]


def _exists(scene: Scene, rng: Random) -> list[Question]:
    """About a shape that is there or, as often, one that shares its colour or kind and may be absent."""
    seen = rng.choice(scene.shapes) if scene.shapes else None
    color = seen.color if seen else rng.choice(COLOR_NAMES)
    shape = seen.shape if seen else rng.choice(SHAPES)
    if rng.random() < 0.55:
        color, shape = rng.choice([(color, rng.choice(SHAPES)), (rng.choice(COLOR_NAMES), shape)])
    found = scene.find(color, shape)
    text = f"Is there any {color} {shape}?"
    return [Question("exists", text, "yes" if found else "no", _boxes(found or scene.shapes), _boxes(found))]


_ASK: dict[str, Callable[[Scene, Random], list[Question]]] = {
    "read_shape": _read_shape,
    "color_of": _color_of,
    "shape_of": _shape_of,
    "read_field": _read_field,
    "field_of": _field_of,
    "read_cell": _read_cell,
    "relational": _relational,
    "count": _count,
    "count_all": _count_all,
    "exists": _exists,
}


def ask(scene: Scene, rng: Random, types: Sequence[str] = tuple(TYPES)) -> list[Question]:
    """Every question of the given types that `scene` can answer; `rng` picks the wording."""
    return [question for name in types for question in _ASK[name](scene, rng)]
