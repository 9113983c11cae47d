"""Tables of rows as plain values: JSON lines, JSON arrays, parquet and folders of the `datasets` library."""

from __future__ import annotations

import codecs
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from foveate.errors import DataError, MissingExtraError

SUFFIXES = (".jsonl", ".json", ".parquet")

_MARKS = {  # longest first: the mark of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte-order marks, and the encoding that each one announces."""


class Table(Protocol):
    """Rows that are read one at a time."""

    @property
    def path(self) -> Path:
        """Where it is."""
        ...

    @property
    def folder(self) -> Path:
        """What paths of images in it are relative to."""
        ...

    def __len__(self) -> int: ...

    def number(self, index: int) -> int:
        """What people call the row: the line of JSON lines, else its place counted from 1."""
        ...

    def row(self, index: int) -> dict[str, Any]:
        """The row's columns.

        Raises:
            DataError: it cannot be read; says why, but not which row it is.
        """
        ...


def read_table(path: Path) -> Table:
    """The table in a file or folder.

    Raises:
        DataError: nothing there, or not what its suffix says.
        MissingExtraError: the `datasets` library is needed.
    """
    if path.is_dir():
        return Columns(path, path, _saved(path))
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{path}: rows come from a file that ends in {', '.join(SUFFIXES)}, a folder that `datasets` saved, or "
            "`scenes:SPLIT`."
        )
    if not path.is_file():
        raise DataError(f"{path} does not exist: there is no file of that name.")
    if path.suffix.lower() == ".parquet":
        return Columns(path, path.parent, _parquet(path))
    return _json(path)


@dataclass(frozen=True)
class Lines:
    """JSON lines, or the elements of a JSON array.

    Attributes:
        rows: (number, value), where bytes are a line that has not been parsed yet.
    """

    path: Path
    folder: Path
    rows: list[tuple[int, Any]]

    def __len__(self) -> int:
        return len(self.rows)

    def number(self, index: int) -> int:
        return self.rows[index][0]

    def row(self, index: int) -> dict[str, Any]:
        value = self.rows[index][1]
        if isinstance(value, bytes):
            value = _parse(value)
        if not isinstance(value, dict):
            raise DataError(f"it is no JSON object but {type(value).__name__}")
        return value


def _json(path: Path) -> Lines:
    """JSON lines, or an array if the first character is a bracket and the whole file is one."""
    data = _utf8(path)
    if data.lstrip()[:1] == b"[" and path.suffix.lower() == ".json":
        try:
            values = _parse(data)
        except DataError as error:
            raise DataError(f"{path} cannot be read as a JSON array: {error}") from error
        return Lines(path, path.parent, list(enumerate(values, 1)))
    lines = data.split(b"\n")  # and not at other line ends, which may stand in strings
    return Lines(path, path.parent, [(number, line) for number, line in enumerate(lines, 1) if line.strip()])


def _utf8(path: Path) -> bytes:
    """The file without its byte-order mark, in UTF-8 whatever the mark says."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            try:
                return data.decode(encoding).encode()
            except UnicodeError as error:
                raise DataError(f"{path} says that it is {encoding}, but is not: {error}") from error
    if b"\0" in data[:4]:
        raise DataError(f"{path} is not UTF-8 (UTF-16 without a byte-order mark?); save it as UTF-8.")
    return data


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"it is not UTF-8 (byte {error.start}: {error.reason}); save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"it is no JSON: {error}") from error


@dataclass(frozen=True)
class Columns:
    """A `datasets.Dataset`, which stays on the disk; its images stay encoded."""

    path: Path
    folder: Path
    rows: Any

    def __len__(self) -> int:
        return len(self.rows)

    def number(self, index: int) -> int:
        return index + 1

    def row(self, index: int) -> dict[str, Any]:
        try:
            return self.rows[index]
        except (OSError, ValueError) as error:  # arrow's own errors are among them
            raise DataError(f"it cannot be read: {error}") from error


def _datasets(path: Path) -> Any:
    try:
        import datasets  # slow to import
    except ImportError as error:
        raise MissingExtraError(f"Reading {path} needs `datasets`: pip install 'foveate[eval]'.") from error
    return datasets


def _parquet(path: Path) -> Any:
    datasets = _datasets(path)
    try:
        return _undecoded(datasets.load_dataset("parquet", data_files=str(path), split="train"))
    except (datasets.exceptions.DatasetGenerationError, ValueError, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet: {error.__cause__ or error}") from error


def _saved(folder: Path) -> Any:
    """What `save_to_disk` wrote."""
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        names = ", ".join(str(path.parent) for path in sorted(folder.glob("*/state.json")))
        raise DataError(f"{folder} holds several splits; name one: {names}.")
    if not (folder / "state.json").is_file():
        raise DataError(f"{folder} is no folder that `Dataset.save_to_disk` wrote; name a file in it.")
    datasets = _datasets(folder)
    try:
        return _undecoded(datasets.load_from_disk(str(folder)).with_format(None))
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise DataError(f"{folder} cannot be read: {error}") from error


def _undecoded(rows: Any) -> Any:
    """Image columns as stored (bytes or path), so that reading a row decodes nothing."""
    from datasets import Image as ImageFeature
    from datasets import List

    stored = ImageFeature(decode=False)
    for name, feature in rows.features.items():
        if isinstance(feature, ImageFeature):
            rows = rows.cast_column(name, stored)
        elif isinstance(getattr(feature, "feature", None), ImageFeature):
            rows = rows.cast_column(name, List(stored))
    return rows
