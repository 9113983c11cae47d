"""Pictures and videos in a folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from foveate.data.videos import SUFFIXES, is_video
from foveate.files.outputs import PICTURES

KINDS = ", ".join((*PICTURES, *SUFFIXES))
"""For messages."""


def pictures_among(files: Iterable[Path]) -> list[Path]:
    """Those that are pictures or videos by their names (or content, where a name may mean something else) and not
    hidden, in the order given."""
    return [
        file
        for file in files
        if not file.name.startswith(".") and file.is_file() and (file.suffix.lower() in PICTURES or is_video(file))
    ]
