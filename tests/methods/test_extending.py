"""The page that says how to write a method: its code runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def test_the_first_method_runs_as_written() -> None:
    first, second = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)[:2]
    scope: dict[str, Any] = {"__name__": __name__}
    exec(first + second, scope)
    view = scope["view"]
    found = scope["LargestFeatures"](keep=64).select(view)
    assert found.tolist() == sorted(view.hidden.norm(dim=-1).topk(64).indices.tolist())


def test_it_needs_three_concepts() -> None:
    first = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)[0]
    imported = re.findall(r"^from foveate import (.*)$", first, flags=re.MULTILINE)
    assert imported == ["Score, View"]  # the third is keep, which is inherited
