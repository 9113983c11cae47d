"""Where results will go, checked before anything is computed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from foveate.errors import MissingExtraError, OutputError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Suffixes that Pillow writes everywhere."""
PLOTS = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")
"""Suffixes that matplotlib writes everywhere."""


def check_file(path: Path, suffixes: Sequence[str] = ()) -> None:
    """Raise `OutputError` unless a file can be written at `path` (its folders are made when it is).

    Args:
        suffixes: the kinds of file that can be written; empty: any.
    """
    if path.is_dir():
        raise OutputError(f"Cannot write {path}: it is a folder; give the name of a file.")
    if suffixes and path.suffix.lower() not in suffixes:
        raise OutputError(f"Cannot write {path}: its name must end in one of {', '.join(suffixes)}.")
    if path.exists() and not os.access(path, os.W_OK):
        raise OutputError(f"Cannot write {path}: it may not be overwritten by this user; choose another name.")
    _check_parent(path, path.parent)


def check_folder(path: Path) -> None:
    """Raise `OutputError` unless `path` is, or can become, a folder to write into."""
    _check_parent(path, path)


def _check_parent(path: Path, folder: Path) -> None:
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
    except OSError as error:  # a name too long, or a folder that may not even be looked into
        raise OutputError(f"Cannot write {path}: {error.strerror}. Choose another place.") from error
    if not there.is_dir():
        raise OutputError(f"Cannot write {path}: {there} is a file, not a folder. Choose another place.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"Cannot write {path}: this user may not write into {there}. Choose another place.")


def check_packages(what: str, extra: str, *names: str) -> None:
    """Raise `MissingExtraError` if a package that `what` needs is not installed, before the work that it ends.

    Args:
        what: subject of the message, e.g. "The report".
        extra: of this project that installs them.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"{what} needs {', '.join(missing)}: pip install 'foveate[{extra}]'.")
