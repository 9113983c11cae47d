"""Reports that a stopped run continues from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_report(path: Path, about: dict[str, Any], **empty: Any) -> dict[str, Any]:
    """The report at `path` if it is about the same model and questions, else a new one with the `empty` fields."""
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        if found.get("about") == about:
            return found
        print(f"{path} is about {found.get('about')}: it will be replaced")
    return {"about": about, **empty}
