"""Training state on disk: written atomically, read without unpickling code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from foveate.errors import CheckpointError


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` so that a kill at any moment leaves either the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def load(path: Path) -> dict[str, Any] | None:
    """The state, `None` without a file.

    Raises:
        CheckpointError: the file is not a checkpoint of ours.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen different types on a damaged file
        raise CheckpointError(f"{path} cannot be read ({error}); delete it to start this stage anew") from error
    return state
