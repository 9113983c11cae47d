"""Which colours, shapes, coloured shapes, keys and characters an image shows, as one vector."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.scenes import Scene
from foveate.scenes.palette import CHARACTERS, COLOR_NAMES, KEYS, SHAPES

THINGS = [
    *COLOR_NAMES,
    *SHAPES,
    *(f"{color} {shape}" for color in COLOR_NAMES for shape in SHAPES),
    *KEYS,
    *CHARACTERS,
]
_INDEX = {thing: i for i, thing in enumerate(THINGS)}


def presence(scenes: list[Scene]) -> Tensor:
    """`[B, len(THINGS)]` of zeros and ones."""
    out = torch.zeros(len(scenes), len(THINGS))
    for i, scene in enumerate(scenes):
        shown = {field.key for field in scene.fields}
        shown |= {character for field in scene.fields for character in field.value}
        for shape in scene.shapes:
            shown |= {shape.color, shape.shape, shape.name, *shape.label}
        out[i, [_INDEX[thing] for thing in shown]] = 1
    return out
