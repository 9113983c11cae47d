"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an exception.

    The file may be read and written by whom the user's umask allows, whatever its writer set.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        publish(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def publish(*paths: Path) -> None:
    """Give files the rights that new files of this user have: some libraries write for the owner alone."""
    for path in paths:
        path.chmod(0o666 & ~_umask(path.parent))


def _umask(folder: Path) -> int:
    """The user's umask, from a file that is made for it: asking the process would change it for other threads."""
    probe = folder / f".{os.getpid()}.{os.urandom(4).hex()}.umask"
    os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        return ~probe.stat().st_mode & 0o666
    finally:
        probe.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a whole file; readers see the old one or the new one."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
