"""What is asked: rows as questions, and batches of them that the model's processor takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from foveate.data.reading import read_rows
from foveate.data.rows import Row, Rows, Rules
from foveate.errors import DataError
from foveate.inference import rows as batches
from foveate.inference.answer import Asker

_RULES = Rules(box_format=None, needs_boxes=False, opens_images=False, takes_videos=True)


def load(data: str, limit: int | None = None, prompt: str = "{question}", skip_bad: bool = False) -> Rows:
    """Questions by name or file; images are opened when they are asked about.

    Args:
        data: see `foveate.data.reading.read_rows`; `scenes` is `scenes:test`.
        limit: the first so many rows.
        prompt: what to ask; `{question}` stands for the question.
        skip_bad: leave bad rows out; `Rows.skipped` says what was wrong with them.

    Raises:
        DataError: nothing readable there, or (unless `skip_bad`) bad rows, with their numbers.
    """
    if "{question}" not in prompt:
        raise DataError(f"The prompt {prompt!r} has no {{question}} in it, so every question would be the same.")
    source = "scenes:test" if data in ("scenes", "scenes:") else data
    return replace(read_rows(source, replace(_RULES, skip_bad=skip_bad), limit), prompt=prompt)


def prepare(
    asker: Asker, rows: Sequence[Row], skip_bad: bool, skipped: list[str]
) -> tuple[list[Row], dict[str, Tensor]]:
    """The rows that can be asked, and their model inputs in one batch (none if there are no such rows).

    Args:
        skipped: what is wrong with the other rows is added.

    Raises:
        DataError: the first row that cannot be asked, unless `skip_bad`: unreadable images, a placeholder in the
            question, or anything that the processor refuses (an extreme aspect ratio).
    """
    good: list[tuple[Row, list[Any]]] = []

    def bad(problem: str, cause: Exception) -> None:
        if not skip_bad:
            raise DataError(f"{problem} Use --skip-bad to leave such rows out and count them.") from cause
        skipped.append(problem)

    for row in rows:
        try:
            good.append((row, row.load_media()))
        except DataError as error:
            bad(str(error), error)
    found = batches.prepare(asker, good)
    for row, refusal in found.refused:
        bad(f"{row.where}: {refusal}", refusal)
    return found.rows, dict(found.inputs)
