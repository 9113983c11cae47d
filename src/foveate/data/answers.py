"""Reference answers in the shapes in which published data hold them."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from foveate.errors import DataError

_KEYS = ("answer", "text")
"""Where objects hold the answer: VQAv2 and VizWiz under `answer`, SQuAD-like data under `text`."""

_LIST_AS_TEXT = re.compile(r"""\[\s*['"{].*\]""", re.DOTALL)
_HALF_A_LIST = re.compile(r"""\[\s*['"]""")
_NO_COMMA = re.compile(r"""(['"])\s+(['"])""")


def read_answers(value: Any) -> tuple[str, ...]:
    """The answers that a column holds, in their order; none for None, an empty list or blank text.

    Read are: text; numbers (whole ones without a decimal point); an object with the answer under `answer` or `text`;
    a list of these; and such a list of texts or objects written as text (`"['a', 'b']"`, as exports to CSV leave it).
    A list of bare numbers as text stays text: it may be a place that is asked for.

    Raises:
        DataError: another shape, or a list in which an answer is missing; says which, but not in which row.
    """
    value = _list_of_text(value) if isinstance(value, str) else value
    if value is None or (isinstance(value, str | list | tuple) and not _filled(value)):
        return ()
    if isinstance(value, Mapping):
        value = _inside(value)  # an object, or a table's column of objects: one list per key
    if not isinstance(value, list | tuple):
        return (_one(value),)
    answers = []
    for number, item in enumerate(value, 1):
        try:
            answers.append(_one(_inside(item) if isinstance(item, Mapping) else item))
        except DataError as error:
            raise DataError(f"answer {number} of {len(value)}: {error}") from error
    return tuple(answers)


def _filled(value: Any) -> bool:
    return bool(value.strip() if isinstance(value, str) else value)


def _one(value: Any) -> str:
    """One answer as text."""
    if isinstance(value, bool):
        raise DataError(f"the answer is {str(value).lower()}; write the word that the model should say")
    if isinstance(value, float | Decimal):
        if not math.isfinite(value):
            raise DataError(f"the answer is {value}, no number")
        return str(int(value)) if value == int(value) else str(value)
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise DataError("the answer is null" if value is None else f"the answer is not text but {_kind(value)}")
    if not value.strip():
        raise DataError("the answer is empty")
    if value.strip().lower() == "nan":
        raise DataError(f"the answer is {value!r}, which exports write where there is none")
    return checked_text(value, "the answer")


def checked_text(text: str, name: str) -> str:
    """The text itself.

    Raises:
        DataError: it holds half of a surrogate pair, which can be neither tokenized nor stored.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name} holds half of a character ({error.object[error.start]!r})") from error
    return text


def _inside(value: Mapping[str, Any]) -> Any:
    for key in _KEYS:
        if key in value:
            return value[key]
    raise DataError(
        f"the answer is an object without {' or '.join(map(repr, _KEYS))}; it has {', '.join(map(str, value))}"
    )


def _kind(value: Any) -> str:
    return "a list in a list" if isinstance(value, list | tuple) else type(value).__name__


def _list_of_text(text: str) -> Any:
    """The list that text stands for, else the text itself."""
    bare = text.strip()
    if bare == "[]":
        return []
    if not _LIST_AS_TEXT.fullmatch(bare):
        if _HALF_A_LIST.match(bare):
            raise DataError(f"the answer {bare[:60]!r} looks like a list that is cut off")
        return text
    try:
        return json.loads(bare)
    except (ValueError, RecursionError):
        pass
    if _NO_COMMA.search(bare):  # Python would join its elements to one
        raise DataError(f"the answer {bare[:60]!r} is a list without commas, as numpy prints it; export it as JSON")
    try:
        return ast.literal_eval(bare)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise DataError(f"the answer {bare[:60]!r} looks like a list, but is neither JSON nor Python") from error
