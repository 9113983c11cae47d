"""Checkpoints of a run that were written to their end."""

from __future__ import annotations

import json
from pathlib import Path

from foveate.glimpse.module import WEIGHTS


def last_checkpoint(folder: Path, weights: str = WEIGHTS) -> Path | None:
    """The newest checkpoint that was written to its end, or None.

    The Trainer writes `trainer_state.json` last, so a kill in the middle of a checkpoint leaves it missing or
    cut off.
    """
    found = [p for p in folder.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    for path in sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")), reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if (path / weights).is_file():
            return path
    return None
