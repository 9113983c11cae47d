"""Parts on disk: each one parquet file that appears whole by a rename, so that a part is there once or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foveate.errors import FoveateError
from foveate.files.atomic import replacing, write_text

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("images", pa.list_(pa.string())),
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("stop", pa.string()),
        ("visual_tokens", pa.int64()),
        ("kept_tokens", pa.float64()),
        ("error", pa.string()),
    ]
)
"""Of every part: `row` is the row's number in the manifest; either `answer` or `error` is null. `kept_tokens` is an
average over decoder layers."""

_SPEC, _MERGED, _LOCK = "batch.json", "answers.parquet", ".lock"
_HASH, _ERRORS = b"foveate.spec", b"foveate.errors"

Record = dict[str, Any]


class BatchError(FoveateError, RuntimeError):
    """A folder that holds answers to something else, is in use or is damaged, or a batch that cannot go on.

    Remedy: use another `--out`, or the settings that the folder was begun with; the message names the difference.
    """


@dataclass(frozen=True)
class BatchFolder:
    """The folder of a batch.

    Attributes:
        spec: JSON values that must be equal for answers to belong together (model, method, prompt, rows, ...).
        rows: number of rows in the manifest.
        size: rows of a part; the last may have fewer.
    """

    folder: Path
    spec: Mapping[str, Any]
    rows: int
    size: int

    @property
    def hash(self) -> str:
        """Of the spec; every part carries it."""
        return hashlib.sha256(json.dumps(self.spec, sort_keys=True).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return -(-self.rows // self.size)

    def range(self, part: int) -> range:
        """Indices of the rows of a part."""
        return range(part * self.size, min(self.rows, (part + 1) * self.size))

    def path(self, part: int) -> Path:
        return self.folder / f"part-{part:06d}.parquet"

    @property
    def merged(self) -> Path:
        return self.folder / _MERGED

    @contextmanager
    def held(self) -> Iterator[None]:
        """Claim the folder for this process and this spec.

        Raises:
            BatchError: another process works in it, or its answers are to something else.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / _LOCK).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise BatchError(
                    f"Another process is working in {self.folder}; wait for it or choose another --out."
                ) from error
            self._claim()
            for left in self.folder.glob(".*.parquet.*"):  # a killed process was writing it
                left.unlink(missing_ok=True)
            yield

    def _claim(self) -> None:
        file = self.folder / _SPEC
        if not file.is_file():
            if next(self.folder.glob("part-*.parquet"), None) is not None:
                raise BatchError(f"{self.folder} holds parts but no {_SPEC}; choose another --out.")
            write_text(file, json.dumps({"hash": self.hash, "spec": self.spec}, indent=1, ensure_ascii=False) + "\n")
            return
        try:
            found = json.loads(file.read_text(encoding="utf-8"))["spec"]
            names = found.keys() | self.spec.keys()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BatchError(f"{file} cannot be read: it is no file of foveate batch. Choose another --out.") from error
        other = sorted(name for name in names if found.get(name) != self.spec.get(name))
        if other:
            told = "; ".join(_difference(name, found.get(name), self.spec.get(name)) for name in other)
            raise BatchError(
                f"{self.folder} holds answers under other settings ({told}). Repeat those, or choose another --out."
            )

    def missing(self, retry_errors: bool = False) -> list[int]:
        """Parts that are still to be computed.

        Args:
            retry_errors: parts that hold an error count as not there.

        Raises:
            BatchError: a part that is damaged or belongs to another batch.
        """
        return [part for part in range(len(self)) if self.lacks(part, retry_errors)]

    def lacks(self, part: int, retry_errors: bool = False) -> bool:
        """Whether a part is still to be computed."""
        return not self.path(part).is_file() or (self._errors(part) > 0 and retry_errors)

    def _errors(self, part: int) -> int:
        """Number of rows with an error in a part that is there."""
        path = self.path(part)
        try:
            footer = pq.read_metadata(path)
        except (pa.ArrowException, OSError) as error:
            raise BatchError(f"{path} is damaged ({error}). Delete it to compute it again.") from error
        metadata = footer.metadata or {}
        if metadata.get(_HASH) != self.hash.encode() or footer.num_rows != len(self.range(part)):
            raise BatchError(f"{path} does not belong to this batch. Delete it to compute it again.")
        return int(metadata.get(_ERRORS, b"0"))

    def errors(self) -> int:
        """Number of rows with an error in all parts that are there."""
        return sum(self._errors(part) for part in range(len(self)) if self.path(part).is_file())

    def commit(self, part: int, records: Sequence[Record]) -> None:
        """Put a part in its place; it is on the disk when this returns."""
        if len(records) != len(self.range(part)):
            raise BatchError(f"part {part} has {len(records)} records for {len(self.range(part))} rows")
        self.merged.unlink(missing_ok=True)  # it would no longer be what the parts say
        errors = sum(record["error"] is not None for record in records)
        schema = SCHEMA.with_metadata({_HASH: self.hash.encode(), _ERRORS: str(errors).encode()})
        with replacing(self.path(part)) as partial, partial.open("wb") as file:
            pq.write_table(pa.Table.from_pylist(list(records), schema=schema), file)
            file.flush()
            os.fsync(file.fileno())

    def merge(self) -> Path:
        """All parts in one file, in the order of the manifest.

        Raises:
            BatchError: a part is missing.
        """
        if missing := self.missing():
            raise BatchError(
                f"{self.folder}: {len(missing)} of {len(self)} parts are missing; run the batch to its end."
            )
        schema = SCHEMA.with_metadata({_HASH: self.hash.encode()})
        with replacing(self.merged) as partial, pq.ParquetWriter(partial, schema) as writer:
            for part in range(len(self)):
                writer.write_table(pq.read_table(self.path(part)).replace_schema_metadata(schema.metadata))
        return self.merged


def _difference(name: str, there: Any, now: Any) -> str:
    """What differs of a setting; of a text with many parts, such as a method's, only these."""
    if isinstance(there, str) and isinstance(now, str):
        old, new = there.split(", "), now.split(", ")
        if len(old) == len(new) > 1:
            differ = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
            there, now = ", ".join(a for a, _ in differ), ", ".join(b for _, b in differ)
    return f"{name}: {there!r} there, {now!r} now"
