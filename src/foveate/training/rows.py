"""Rows that a certain model can be trained on, and what is shown while they are checked."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import track

from foveate.data.reading import refuse
from foveate.data.rendered import Scenes
from foveate.data.rows import Row, Rows
from foveate.errors import DataError, InputError
from foveate.families.base import Family
from foveate.inference.placeholders import check_text, placeholders
from foveate.inference.processor import REFUSALS
from foveate.training.processes import is_first

Size = tuple[int, int]


def stderr() -> Console:
    """Where progress bars go, so that standard output stays clean."""
    return Console(stderr=True)


def tracked(results: Iterable[Row | str], total: int) -> Iterable[Row | str]:
    """Show how many rows have been checked, in the first process."""
    return track(results, "checking data", total, console=stderr(), disable=not is_first())


def check_for(family: Family, processor: Any, rows: Rows, skip_bad: bool, system: str | None = None) -> Rows:
    """The rows that this model can read: no placeholder in question or answer, no image that its processor refuses.

    The built-in scenes can all be read, and are not rendered for this.

    Args:
        system: the system message of every prompt.

    Raises:
        DataError: no usable row, or (unless `skip_bad`) bad ones, with their numbers.
        InputError: a placeholder in the system message.
    """
    marks = placeholders(family, processor.tokenizer)
    check_text(system or "", marks, "the system message")
    if isinstance(rows.items, Scenes):
        return rows
    sizes = {size for row in rows.items for size in row.sizes}
    with ThreadPoolExecutor() as pool:
        refusals = dict(zip(sizes, pool.map(lambda size: _refusal(processor, size), sizes), strict=True))
    good, bad = list[Row](), list[str]()
    for row in rows.items:
        problem = _problem(row, marks, refusals)
        if problem is None:
            good.append(row)
        else:
            bad.append(f"row {row.number}: {problem}")
    source = rows.items[0].source
    refuse(source, bad, len(rows), skip_bad)
    if not good:
        raise DataError(f"{source} has no row that this model can read; the first problem: {bad[0]}")
    return Rows.of(good, rows.name, [*rows.skipped, *(f"{source} {problem}" for problem in bad)], rows.prompt)


def _problem(row: Row, marks: tuple[str, ...], refusals: dict[Size, str | None]) -> str | None:
    try:
        check_text(row.question, marks, "the question")
        check_text(row.answer or "", marks, "the answer")
    except InputError as error:
        return str(error)
    for number, size in enumerate(row.sizes, 1):
        if refusal := refusals[size]:
            return f"image {number} of {size[0]} x {size[1]} pixels is refused by the model's processor: {refusal}"
    return None


def _refusal(processor: Any, size: Size) -> str | None:
    """Why the processor does not take images of this size; only the size of a readable image can be refused."""
    try:
        processor.image_processor(images=[Image.new("RGB", size)], return_tensors="pt")
    except REFUSALS as error:
        return str(error)
    return None
