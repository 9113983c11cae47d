"""What is asked: the rows of a table, or the pictures and videos of a folder, read one at a time."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foveate.data.folders import KINDS, pictures_among
from foveate.data.reading import read_row
from foveate.data.rows import Row, Rules
from foveate.data.tables import Table, read_table
from foveate.data.videos import is_video
from foveate.errors import DataError, FoveateError

QUESTION = "{question}"
_LOOKED_AT = 100
"""If none of so many first rows can be read, the table is not what the user thinks it is."""


@dataclass(frozen=True)
class Pictures:
    """A folder of pictures and videos, its subfolders included, as a table with the column `image` or `video`."""

    path: Path
    folder: Path
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def number(self, index: int) -> int:
        return index + 1

    def row(self, index: int) -> dict[str, Any]:
        name = self.names[index]
        return {"video" if is_video(name, self.folder) else "image": name}


@dataclass(frozen=True)
class Unread:
    """A row that cannot be asked, and why."""

    number: int
    problem: str


@dataclass(frozen=True)
class Manifest:
    """Rows to ask, in the order of their source.

    Attributes:
        prompt: what is asked; `{question}` stands for the question of the row.
        length: number of rows that count, from the first on.
    """

    table: Table
    prompt: str
    length: int

    @classmethod
    def open(cls, source: Path, prompt: str, limit: int | None = None) -> Manifest:
        """The rows of a `.parquet`, `.jsonl` or `.json` file, a saved dataset or a folder of pictures and videos.

        Raises:
            DataError: nothing readable there, no row, or none of the first rows has the columns that are needed.
            MissingExtraError: reading it needs the `datasets` library.
        """
        table = _table(source)
        if not prompt.strip():
            raise DataError("The prompt is empty: say what to ask about each image (--prompt).")
        if isinstance(table, Pictures) and QUESTION in prompt:
            raise DataError(f"{source} is a folder of pictures, which have no question: give one with --prompt.")
        found = cls(table, prompt, len(table) if limit is None else min(limit, len(table)))
        if not len(found):
            raise DataError(f"{source} has no row: there is nothing to ask.")
        first = [found.read(index) for index in range(min(len(found), _LOOKED_AT))]
        unread = [one for one in first if isinstance(one, Unread)]
        if len(unread) == len(first):
            raise DataError(
                f"{source}: none of the first {len(first)} rows can be read; row {unread[0].number}: "
                f"{unread[0].problem}"
            )
        return found

    def __len__(self) -> int:
        return self.length

    def read(self, index: int) -> Row | Unread:
        """The row at `index` (counted from 0) with what is asked as its question; its images are not opened."""
        asks = QUESTION in self.prompt
        rules = Rules(
            box_format=None, needs_boxes=False, needs_answer=False, needs_question=asks, opens_images=False,
            takes_videos=True,
        )  # fmt: skip
        number = self.table.number(index)
        try:
            row = read_row(self.table, index, rules)
        except FoveateError as error:
            return Unread(number, str(error))
        return replace(row, question=self.prompt.replace(QUESTION, row.question))

    def digest(self) -> str:
        """Tells this manifest from another or an edited one, wherever it lies. Of a folder: names and sizes."""
        digest = hashlib.sha256()
        for file in _files(self.table):
            if self.table.path.is_dir():
                digest.update(os.fsencode(file.relative_to(self.table.path)) + f"\0{file.stat().st_size}\0".encode())
            else:
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()[:16]


def _table(source: Path) -> Table:
    if not source.is_dir() or (source / "state.json").is_file() or (source / "dataset_dict.json").is_file():
        return read_table(source)
    names = sorted(file.relative_to(source).as_posix() for file in pictures_among(source.rglob("*")))
    if not names:
        raise DataError(f"{source} has no pictures or videos in it ({KINDS}), and is no saved dataset.")
    return Pictures(source, source, tuple(names))


def _files(table: Table) -> list[Path]:
    if isinstance(table, Pictures):
        return [table.folder / name for name in table.names]
    if table.path.is_dir():
        return sorted(file for file in table.path.rglob("*") if file.is_file() and not file.name.startswith("cache-"))
    return [table.path]
