"""Results on disk: one JSON object per line, appended as they come, safe against a kill at any moment."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from foveate.errors import FoveateError

Record = dict[str, Any]


class StoreError(FoveateError, RuntimeError):
    """A results file that belongs to another run, is in use or is damaged.

    Remedy: give the run a folder of its own with `--out`, or wait for the process that holds it.
    """


class Store:
    """Answers of a run, keyed by (setting, sample).

    The first line says what the run is; a file of another run is refused. Every append is one write that is
    flushed to the disk. A torn last line (the process was killed while writing) is cut off when the file is
    opened; any other damage is an error, because silently missing answers would change an accuracy.

    Args:
        path: the `.jsonl` file; made if it is not there.
        identity: what must be equal for results to be comparable (model, data, prompt, ...).
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path, self.identity = path, identity
        self.records: dict[tuple[str, str], Record] = {}
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise StoreError(f"Another process is writing {self.path}; wait for it or choose another --out.") from error
        self._file = file
        try:
            self._read()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()  # lets the lock go
            self._file = None

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self.records

    def append(self, records: Iterable[Record]) -> None:
        """Remember results; they are on the disk when this returns."""
        fresh = [record for record in records if _key(record) not in self.records]
        self._write(fresh)
        self.records |= {_key(record): record for record in fresh}

    def _write(self, lines: Iterable[Record]) -> None:
        assert self._file is not None, "opened by `with`"
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        self._file.write(data.encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.splitlines()
        if lines and _parse(lines[-1]) is None:
            whole, lines = whole[: len(whole) - len(lines[-1]) - 1], lines[:-1]
        if len(whole) != len(content):
            self._file.truncate(len(whole))
            os.fsync(self._file.fileno())
        if not lines:
            self._write([{"run": self.identity}])
            return
        self._check(_parse(lines[0]))
        for number, line in enumerate(lines[1:], 2):
            record = _parse(line)
            if record is None or "setting" not in record or "sample" not in record:
                raise StoreError(
                    f"{self.path} line {number} is damaged. Delete that line to compute it again, or choose "
                    "another --out."
                )
            self.records.setdefault(_key(record), record)

    def _check(self, header: Record | None) -> None:
        found = (header or {}).get("run")
        if not isinstance(found, dict):
            raise StoreError(f"{self.path} is no results file of foveate eval; choose another --out.")
        other = [k for k in self.identity.keys() | found.keys() if found.get(k) != self.identity.get(k)]
        if other:
            differences = ", ".join(f"{k}: {found.get(k)!r} there, {self.identity.get(k)!r} now" for k in sorted(other))
            raise StoreError(f"{self.path} belongs to another run ({differences}). Choose another --out.")


def _key(record: Record) -> tuple[str, str]:
    return record["setting"], record["sample"]


def _parse(line: bytes) -> Record | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
