"""Rendered question-answering images: the built-in benchmark and training data.

Coloured shapes carrying digits or letters, receipt-like panels, cluttered backgrounds, pages with tables and videos of
moving shapes, each with questions, answers and evidence boxes, deterministic from a seed. See
`foveate.scenes.questions` for the question types and what each needs of an image.

    for sample in scenes.load("test", n=3):
        print(sample.question, sample.answer, sample.boxes)
"""

from .compose import compose
from .dataset import to_dataset
from .document import compose_document
from .motion import VIDEO_TYPES, ask_video
from .moving import compose_moving
from .questions import DOCUMENT_TYPES, NEEDS, TYPES, Question, ask
from .scene import Box, Cell, Field, Glyph, Scene, Shape
from .share import TokenShares, shares
from .spec import SceneSpec
from .splits import SPECS, SPLITS, Sample, Split, UnknownSplitError, load, name_image

__all__ = [
    "DOCUMENT_TYPES",
    "NEEDS",
    "SPECS",
    "SPLITS",
    "TYPES",
    "VIDEO_TYPES",
    "Box",
    "Cell",
    "Field",
    "Glyph",
    "Question",
    "Sample",
    "Scene",
    "SceneSpec",
    "Shape",
    "Split",
    "TokenShares",
    "UnknownSplitError",
    "ask",
    "ask_video",
    "compose",
    "compose_document",
    "compose_moving",
    "load",
    "name_image",
    "shares",
    "to_dataset",
]
