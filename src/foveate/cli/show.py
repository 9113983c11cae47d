"""What a terminal shows. Text from outside (models, users, files) is never markup, and nothing of it is cut off."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_REORDER = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
"""Characters that make a terminal show what follows in another order."""


def plain(value: Any, style: str = "") -> Text:
    """Text as it is: no markup, no emoji codes, no escape sequences; it wraps anywhere rather than being cut."""
    return Text(harmless(str(value)), style=style, overflow="fold")


def harmless(text: str) -> str:
    """The text with control characters written out: a terminal would obey them."""
    return "".join(
        ascii(c)[1:-1] if (unicodedata.category(c) == "Cc" and c not in "\n\t") or ord(c) in _REORDER else c
        for c in text
    )


def make_table(headers: Sequence[Any], title: str = "", caption: str = "", **options: Any) -> Table:
    """A table of plain text; all columns but the first are right-aligned unless `left` is given."""
    left = options.pop("left", False)
    shown = Table(title=plain(title) if title else None, caption=plain(caption) if caption else None, **options)
    for number, header in enumerate(headers):
        shown.add_column(plain(header), overflow="fold", justify="left" if left or number == 0 else "right")
    return shown


def add_row(shown: Table, *cells: Any) -> None:
    """A row whose cells are plain text, or `Text` with a style of its own."""
    shown.add_row(*(cell if isinstance(cell, Text) else plain(cell) for cell in cells))


def make_progress(elapsed: bool = False, transient: bool = False) -> Progress:
    """A progress bar on standard error, whose description is plain text."""
    columns: list[Any] = [TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()]
    columns += [TimeElapsedColumn()] if elapsed else []
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=transient)
