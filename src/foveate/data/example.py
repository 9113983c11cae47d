"""One question to train on, and what a source of questions must provide."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from PIL import Image, ImageOps

from foveate.data import images as files
from foveate.data.boxes import Box, BoxFormat
from foveate.errors import FoveateError


class DataError(FoveateError, ValueError):
    """Training data that cannot be used; the message names the rows."""


@dataclass(frozen=True)
class Embedded:
    """An encoded image inside a table, left there until it is needed."""

    rows: Any
    row: int
    column: str
    place: int

    def read(self) -> bytes:
        value = self.rows[self.row][self.column]
        return (value[self.place] if isinstance(value, list) else value)["bytes"]

    def __str__(self) -> str:
        return f"{self.place + 1} of column {self.column}"


@dataclass(frozen=True)
class Example:
    """One question.

    Attributes:
        row: number in its source, counted from 1.
        images: paths, places in a table, or loaded images.
        answer: None if the base model shall answer (distillation).
        boxes: normalised evidence boxes of each image; None if unknown.
    """

    row: int
    images: tuple[Path | Embedded | Image.Image, ...]
    question: str
    answer: str | None
    boxes: tuple[tuple[Box, ...], ...] | None

    def load_images(self) -> list[Image.Image]:
        """RGB images.

        Raises:
            DataError: with the row, if a file has become unreadable since it was checked.
        """
        try:
            return [open_image(image) for image in self.images]
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"row {self.row}: image cannot be read: {error}") from error


@dataclass(frozen=True)
class Rules:
    """What a row must have.

    Attributes:
        box_format: convention of the table's boxes.
        needs_boxes: rows without boxes are bad (an empty list is fine: nothing in the image is evidence).
        needs_answer: rows without an answer are bad.
        skip_bad: leave bad rows out instead of refusing the table.
    """

    box_format: BoxFormat = "pixel"
    needs_boxes: bool = True
    needs_answer: bool = True
    skip_bad: bool = False


@dataclass(frozen=True)
class Examples(Sequence[Example]):
    """Checked examples.

    Attributes:
        skipped: how many rows were left out.
        answered: whether every example has an answer (known without rendering or reading them all).
    """

    items: Sequence[Example]
    skipped: int = 0
    answered: bool = True

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Examples: ...
    def __getitem__(self, index: int | slice) -> Example | Examples:
        if isinstance(index, slice):
            return Examples(self.items[index], self.skipped, self.answered)
        return self.items[index]


def open_image(source: Path | Embedded | Image.Image) -> Image.Image:
    """The RGB image behind a path or a place in a table."""
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    if isinstance(source, Path):
        return files.open_image(source)
    with Image.open(io.BytesIO(source.read())) as image:
        return ImageOps.exif_transpose(image).convert("RGB")
