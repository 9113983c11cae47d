"""The splits: fixed seeds, one question an image, types in equal shares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any, overload

from PIL import Image

from foveate.errors import FoveateError

from .compose import compose
from .questions import NEEDS, TYPES, Question, ask
from .scene import Box, Scene
from .spec import SceneSpec

TEST_SIZES = (((336, 336), 0.6), ((224, 224), 0.1), ((448, 336), 0.1), ((336, 448), 0.1), ((448, 448), 0.1))
HARD_SIZES = (((448, 448), 0.4), ((560, 448), 0.2), ((448, 560), 0.2), ((672, 672), 0.2))
_EASY = SceneSpec(sizes=TEST_SIZES)
SPECS = {
    "train": _EASY,
    "val": _EASY,
    "test": _EASY,
    "hard": SceneSpec(HARD_SIZES, shapes=(4, 7), rows=(3, 6), shape_px=(30, 46), font_px=(13, 17), clutter=(12, 40)),
    "multi": SceneSpec(sizes=(((224, 224), 1.0),), shapes=(2, 4), rows=(1, 3), panel_share=0.7),
}
SPLITS = list(SPECS)
LENGTH = 1000
TRAIN_LENGTH = 2**40  # as good as infinite
MULTI_IMAGES = (2, 4)


class UnknownSplitError(FoveateError):
    """A split of another name, or samples beyond its end."""


@dataclass(frozen=True)
class Sample:
    """One question about one image, or about one of several (split `multi`).

    Attributes:
        images: RGB images of the prompt, in order.
        question, answer: text; an answer is right when it is equal.
        type: question type, a key of `questions.NEEDS`.
        need: `local`, `relational` or `global`.
        boxes: evidence boxes, pixel xyxy in `images[asked]`.
        asked: index of the image the question is about.
        seed: seed of the asked image's scene.
        scenes: what each image shows.
    """

    images: tuple[Image.Image, ...]
    question: str
    answer: str
    type: str
    need: str
    boxes: tuple[Box, ...]
    asked: int
    seed: str
    scenes: tuple[Scene, ...]

    @property
    def image(self) -> Image.Image:
        """The image the question is about."""
        return self.images[self.asked]

    def record(self) -> dict[str, Any]:
        """Everything but the pixels, as JSON types."""
        names = ("question", "answer", "type", "need", "asked", "seed")
        boxes = [[float(v) for v in box] for box in self.boxes]
        return {name: getattr(self, name) for name in names} | {
            "boxes": boxes,
            "scenes": [asdict(scene) for scene in self.scenes],
        }


def sample(split: str, index: int) -> Sample:
    """Renders sample `index` of `split`."""
    if split not in SPECS:
        raise UnknownSplitError(f"no split is called {split!r}; there are {', '.join(SPLITS)}")
    kind = TYPES[index % len(TYPES)]
    # Not every scene can answer every type (a panel may be missing): take the first that can.
    for attempt in range(1000):
        seed = f"{split}:{index}:{attempt}"
        scene, image = compose(seed, SPECS[split])
        rng = Random(f"question:{seed}")
        if questions := ask(scene, rng, [kind]):
            found = _single(scene, image, rng.choice(questions))
            return _among_others(found, split, rng) if split == "multi" else found
    raise AssertionError(f"no scene of split {split} answers a {kind} question")


def _single(scene: Scene, image: Image.Image, q: Question) -> Sample:
    return Sample((image,), q.text, q.answer, q.type, NEEDS[q.type], q.boxes, 0, scene.seed, (scene,))


def _among_others(one: Sample, split: str, rng: Random) -> Sample:
    """Puts the sample's image among distractors; the question names it, counted from one."""
    n = rng.randint(*MULTI_IMAGES)
    asked = rng.randrange(n)
    others = [compose(f"{one.seed}:other{i}", SPECS[split]) for i in range(n - 1)]
    others.insert(asked, (one.scenes[0], one.images[0]))
    return replace(
        one,
        images=tuple(image for _, image in others),
        scenes=tuple(scene for scene, _ in others),
        question=name_image(one.question, asked),
        asked=asked,
    )


def name_image(question: str, index: int) -> str:
    """`What is the total?` -> `In image 2, what is the total?`."""
    return f"In image {index + 1}, {question[0].lower()}{question[1:]}"


class Split(Sequence[Sample]):
    """A lazily rendered run of samples; slicing gives another one."""

    def __init__(self, name: str, indices: range) -> None:
        self.name, self.indices = name, indices

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, i: int) -> Sample: ...
    @overload
    def __getitem__(self, i: slice) -> Split: ...
    def __getitem__(self, i: int | slice) -> Sample | Split:
        if isinstance(i, slice):
            return Split(self.name, self.indices[i])
        return sample(self.name, self.indices[i])

    def __iter__(self) -> Iterator[Sample]:
        return (sample(self.name, i) for i in self.indices)

    def __repr__(self) -> str:
        return f"Split({self.name!r}, {self.indices})"


def load(split: str, n: int | None = None, start: int = 0) -> Split:
    """Samples `start` to `start + n` of a split, rendered when they are read.

    `val`, `test`, `hard` and `multi` hold 1,000 samples each and never change; `train` has no end.

    Raises:
        UnknownSplitError: no such split, or the range reaches beyond its end.
    """
    if split not in SPECS:
        raise UnknownSplitError(f"no split is called {split!r}; there are {', '.join(SPLITS)}")
    length = TRAIN_LENGTH if split == "train" else LENGTH
    stop = length if n is None else start + n
    if start < 0 or stop < start or stop > length:
        raise UnknownSplitError(f"split {split!r} has samples 0 to {length}; asked for {start} to {stop}")
    return Split(split, range(start, stop))
