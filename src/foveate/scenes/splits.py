"""The splits: fixed seeds, one question an image, types in equal shares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, overload

from PIL import Image

from foveate.errors import FoveateError

from .compose import compose
from .document import compose_document
from .motion import VIDEO_TYPES, ask_video
from .moving import compose_moving
from .questions import DOCUMENT_TYPES, NEEDS, TYPES, ask
from .scene import Box, Scene
from .spec import SceneSpec

TEST_SIZES = (((336, 336), 0.6), ((224, 224), 0.1), ((448, 336), 0.1), ((336, 448), 0.1), ((448, 448), 0.1))
HARD_SIZES = (((448, 448), 0.4), ((560, 448), 0.2), ((448, 560), 0.2), ((672, 672), 0.2))
DOCUMENT_SIZES = (((448, 560), 0.5), ((560, 672), 0.5))
DENSE_SIZES = (((448, 448), 0.5), ((560, 448), 0.25), ((448, 560), 0.25))
_EASY = SceneSpec(sizes=TEST_SIZES)
SPECS = {
    "train": _EASY,
    "val": _EASY,
    "test": _EASY,
    "hard": SceneSpec(HARD_SIZES, shapes=(4, 7), rows=(3, 6), shape_px=(30, 46), font_px=(13, 17), clutter=(12, 40)),
    "multi": SceneSpec(sizes=(((224, 224), 1.0),), shapes=(2, 4), rows=(1, 3), panel_share=0.7),
    "large": SceneSpec(sizes=(((672, 672), 1.0),)),
    "document": SceneSpec(DOCUMENT_SIZES, rows=(3, 6)),
    "dense": SceneSpec(DENSE_SIZES, shapes=(8, 12), rows=(2, 3), panel_share=0.3, shape_px=(34, 50)),
    "video": SceneSpec(sizes=(((224, 224), 1.0),), shapes=(3, 5), panel_share=0.0, shape_px=(34, 48)),
}
SPLITS = list(SPECS)
LENGTH = 1000
TRAIN_LENGTH = 2**40  # as good as infinite
MULTI_IMAGES = (2, 4)
VIDEO_FRAMES, VIDEO_FPS = 18, 8.0
ASKED = {"document": DOCUMENT_TYPES, "video": VIDEO_TYPES}
"""What is asked on splits that do not ask about scenes."""
Picture = tuple[Scene, Image.Image]


class UnknownSplitError(FoveateError):
    """A split of another name, or samples beyond its end.

    Remedy: choose a split of `foveate.scenes.SPLITS`, and fewer samples.
    """


@dataclass(frozen=True)
class Sample:
    """One question about one image, about one of several (`multi`), or about a video.

    Attributes:
        images: RGB images of the prompt, in order, or the frames of the video.
        question, answer: text; an answer is right when it is equal.
        type: question type, a key of `questions.NEEDS`.
        need: `local`, `relational`, `global` or `motion`.
        boxes: evidence boxes, pixel xyxy in `images[asked]`.
        asked: index of the image the question is about; of a question about motion, a frame that shows what moves.
        seed: seed of the asked image's scene.
        scenes: what each image shows.
        evidence: evidence boxes of every image, `[images][boxes]`.
        fps: frames per second of a video; None for images.
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
    evidence: tuple[tuple[Box, ...], ...]
    fps: float | None = None

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
    """Renders sample `index` of `split`, both as `load` has checked them."""
    types = ASKED.get(split, TYPES)
    kind = types[index % len(types)]
    attempt = _attempt_video if split == "video" else _attempt
    # Not every scene can answer every type (a panel may be missing): take the first that can.
    for number in range(1000):
        if found := attempt(split, f"{split}:{index}:{number}", kind):
            return found
    raise AssertionError(f"no scene of split {split} answers a {kind} question")


def _attempt(split: str, seed: str, kind: str) -> Sample | None:
    rng = Random(f"question:{seed}")
    picture = (compose_document if split == "document" else compose)(seed, SPECS[split])
    questions = ask(picture[0], rng, [kind])
    if not questions:
        return None
    q, pictures, asked = rng.choice(questions), [picture], 0
    if split == "multi":
        pictures, asked = _among_others(picture, rng)
    text = q.text if len(pictures) == 1 else name_image(q.text, asked)
    scenes, images = zip(*pictures, strict=True)
    evidence = tuple(q.boxes if i == asked else () for i in range(len(images)))
    return Sample(images, text, q.answer, q.type, NEEDS[q.type], q.boxes, asked, picture[0].seed, scenes, evidence)


def _attempt_video(split: str, seed: str, kind: str) -> Sample | None:
    rng = Random(f"question:{seed}")
    film = compose_moving(seed, SPECS[split], VIDEO_FRAMES)
    if not (found := ask_video(film, rng, [kind])):
        return None
    chosen = rng.choice(found)
    q, frame = chosen.question, chosen.frame
    return Sample(
        tuple(film.images),
        q.text,
        q.answer,
        q.type,
        NEEDS[q.type],
        q.boxes,
        frame,
        film.scenes[frame].seed,
        tuple(film.scenes),
        chosen.evidence,
        VIDEO_FPS,
    )


def _among_others(one: Picture, rng: Random) -> tuple[list[Picture], int]:
    """Puts the picture among distractors; returns all and its index."""
    n = rng.randint(*MULTI_IMAGES)
    asked = rng.randrange(n)
    pictures = [compose(f"{one[0].seed}:other{i}", SPECS["multi"]) for i in range(n - 1)]
    pictures.insert(asked, one)
    return pictures, asked


def name_image(question: str, index: int) -> str:
    """`What is the total?` -> `In image 2, what is the total?`; counted from one."""
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

    Every split holds 1,000 samples, which never change; `train` has no end.

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
