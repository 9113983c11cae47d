"""Rendered question-answering images: the built-in benchmark and training data.

Coloured shapes carrying digits or letters, receipt-like panels and cluttered backgrounds, each with
questions, answers and evidence boxes, deterministic from a seed. See `foveate.scenes.questions` for the
question types and what each needs of an image.

    for sample in scenes.load("test", n=3):
        print(sample.question, sample.answer, sample.boxes)
"""

from .compose import compose
from .dataset import to_dataset
from .questions import NEEDS, TYPES, Question, ask
from .scene import Box, Field, Glyph, Scene, Shape
from .spec import SceneSpec
from .splits import SPECS, SPLITS, Sample, Split, UnknownSplitError, load, name_image

__all__ = [
    "NEEDS",
    "SPECS",
    "SPLITS",
    "TYPES",
    "Box",
    "Field",
    "Glyph",
    "Question",
    "Sample",
    "Scene",
    "SceneSpec",
    "Shape",
    "Split",
    "UnknownSplitError",
    "ask",
    "compose",
    "load",
    "name_image",
    "to_dataset",
]
