"""Rows of data as one batch of model inputs; those that the model cannot be asked are told apart from the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from foveate.data.rows import Row
from foveate.errors import FoveateError, InputError
from foveate.inference.answer import Asker, context_length

Loaded = tuple[Row, Sequence[Any]]
"""A row and its opened images."""


@dataclass(frozen=True)
class Prepared:
    """A batch.

    Attributes:
        rows: those that can be asked, in the order of the inputs' rows.
        inputs: theirs; empty if there are none.
        refused: the other rows, and why each cannot be asked even alone.
    """

    rows: list[Row]
    inputs: Mapping[str, Tensor]
    refused: list[tuple[Row, FoveateError]]


def prepare(asker: Asker, rows: Sequence[Loaded]) -> Prepared:
    """Model inputs of the rows that can be asked.

    Raises:
        FoveateError: the batch cannot be prepared although each of its rows can.
    """
    refused: list[tuple[Row, FoveateError]] = []
    try:
        inputs = _batch(asker, rows)
    except FoveateError as error:
        if not (refused := _refused(asker, rows)):
            raise error
        rows = [one for one in rows if all(one[0] is not other for other, _ in refused)]
        inputs = _batch(asker, rows)
    return Prepared([row for row, _ in rows], inputs, refused)


def _batch(asker: Asker, rows: Sequence[Loaded]) -> Mapping[str, Tensor]:
    if not rows:
        return {}
    inputs = asker.questions([(images, row.question) for row, images in rows])
    longest, most = int(inputs["attention_mask"].sum(-1).max()), context_length(asker.model)
    if longest >= most:  # the answer would be noise, after a time that grows with the square
        raise InputError(f"The prompt has {longest:,} tokens; the model reads {most:,}. Ask less, or show less.")
    return inputs


def _refused(asker: Asker, rows: Sequence[Loaded]) -> list[tuple[Row, FoveateError]]:
    """The rows that cannot be prepared even alone."""
    found = list[tuple[Row, FoveateError]]()
    for one in rows:
        try:
            _batch(asker, [one])
        except FoveateError as error:
            found.append((one[0], error))
    return found
