"""A question about images: the one row that evaluation and training read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

from PIL import Image

from foveate.data.boxes import Box, BoxFormat
from foveate.data.images import open_image, stored_size
from foveate.data.tables import Table
from foveate.data.videos import Clip, FrameSampling, open_video
from foveate.errors import DataError, FoveateError, ImageError, MissingExtraError


@dataclass(frozen=True)
class Stored:
    """An encoded image inside a table, left there until it is needed."""

    table: Table
    index: int
    column: str
    place: int

    def read(self) -> Any:
        value = self.table.row(self.index)[self.column]
        return value[self.place] if isinstance(value, list) else value

    def __str__(self) -> str:
        return f"image {self.place + 1} of column {self.column}"


@dataclass(frozen=True)
class Row:
    """One question.

    Attributes:
        number: in its source: the line of JSON lines, else its place counted from 1.
        images: paths, data URIs, places in a table, or loaded images.
        answers: references; none if the base model shall answer (distillation).
        boxes: normalised evidence boxes of each image; None if unknown.
        type: for scores per type; empty if the data has none.
        id: stable and unique within its source: the number and a digest of the content.
        source: name of the table, for messages.
        sizes: (width, height) of the images, where they have been opened.
        videos: as images; they come after these.
        sampling: which frames of the videos are taken; None: eight.
    """

    number: int
    images: tuple[Path | str | Stored | Image.Image, ...]
    question: str
    answers: tuple[str, ...] = ()
    boxes: tuple[tuple[Box, ...], ...] | None = None
    type: str = ""
    id: str = ""
    source: str = ""
    sizes: tuple[tuple[int, int], ...] = ()
    videos: tuple[Path | str | Stored | Clip, ...] = ()
    sampling: FrameSampling | None = None

    @property
    def where(self) -> str:
        """Source and row, for messages."""
        return f"{self.source} row {self.number}".strip()

    @property
    def answer(self) -> str | None:
        """The answer to train on: what most references say, of several such the first."""
        return Counter(self.answers).most_common(1)[0][0] if self.answers else None

    def load_images(self) -> list[Image.Image]:
        """The images of the prompt, RGB.

        Raises:
            DataError: with the row, if one of them cannot be read.
        """
        try:
            return [load_image(image) for image in self.images]
        except FoveateError as error:
            raise DataError(f"{self.where}: {error}") from error

    def load_media(self) -> list[Image.Image | Clip]:
        """Images and videos of the prompt, in order.

        Raises:
            DataError: with the row, if one of them cannot be read.
        """
        try:
            return [*self.load_images(), *(load_video(video, self.sampling) for video in self.videos)]
        except MissingExtraError:
            raise
        except FoveateError as error:
            raise error if isinstance(error, DataError) else DataError(f"{self.where}: {error}") from error


def load_video(source: Path | str | Stored | Clip, sampling: FrameSampling | None) -> Clip:
    """The video behind one of `Row.videos`."""
    if not isinstance(source, Stored):
        return open_video(source, sampling)
    value = source.read()
    held = (value.get("bytes") or value.get("path")) if isinstance(value, Mapping) else value
    return open_video(held, sampling, folder=source.table.folder)


def load_image(source: Path | str | Stored | Image.Image) -> Image.Image:
    """The image behind one of `Row.images`."""
    if not isinstance(source, Stored):
        return open_image(source)
    try:
        return open_image(source.read(), folder=source.table.folder)
    except ImageError as error:
        raise ImageError(f"{source}: {error}") from error


def image_size(source: Path | str | Stored | Image.Image) -> tuple[int, int]:
    """(width, height) of the image behind one of `Row.images`, not decoded.

    Raises:
        ImageError: it is none; one whose pixels are damaged passes.
    """
    if not isinstance(source, Stored):
        return stored_size(source)
    return stored_size(source.read(), folder=source.table.folder)


@dataclass(frozen=True)
class Rules:
    """What a row must have.

    Attributes:
        box_format: convention of the table's boxes; None: boxes are not read.
        needs_boxes: rows without boxes are bad (an empty list is fine: nothing in the image is evidence).
        needs_answer: rows without an answer are bad.
        needs_question: rows without a question are bad; else theirs is empty.
        opens_images: every image is opened once, to be sure that it can be; else when it is used.
        takes_videos: rows may have videos.
        skip_bad: leave bad rows out instead of refusing the table.
    """

    box_format: BoxFormat | None = "pixel"
    needs_boxes: bool = True
    needs_answer: bool = True
    needs_question: bool = True
    opens_images: bool = True
    takes_videos: bool = False
    skip_bad: bool = False


@dataclass(frozen=True)
class Rows(Sequence[Row]):
    """Checked rows.

    Attributes:
        items: the rows, perhaps rendered only when they are read.
        ids: theirs, known before a row is read.
        name: of the source.
        skipped: what was wrong with each row that was left out.
        answered: whether every row has an answer.
        prompt: what is asked; `{question}` stands for the question of the row.
    """

    items: Sequence[Row]
    ids: Sequence[str] = field(repr=False)
    name: str
    skipped: tuple[str, ...] = ()
    answered: bool = True
    prompt: str = "{question}"

    @classmethod
    def of(cls, rows: Sequence[Row], name: str, skipped: Iterable[str] = (), prompt: str = "{question}") -> Rows:
        """Rows that have been read."""
        return cls(rows, [row.id for row in rows], name, tuple(skipped), all(row.answers for row in rows), prompt)

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Row | Rows:
        if isinstance(index, slice):
            return replace(self, items=self.items[index], ids=self.ids[index])
        row = self.items[index]
        return replace(row, question=self.prompt.replace("{question}", row.question))
