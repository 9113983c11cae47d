"""How a method is written in one line of text, wherever one is asked for.

    vitcop                                      a name, or its beginning if no other begins so
    vitcop:keep=1/9,deep_layer=20               with parameters
    fastervlm:keep=1/3 + fastv                  several in a row
    (fastervlm + fastv:layer=3):keep=1/9        several in a row with one budget for all

A value is a number (64, 0.11), a fraction (1/9), a percentage (11%), `true`, `false`, `null`, a list ([2,6,15]) or
text. Text that holds one of `,:+()[]` stands in double quotes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from foveate.errors import ConfigurationError

COMPOSE = "compose"
"""The name that several methods in a row have; its parameter `methods` lists their texts."""

_WORDS = {"True": True, "False": False, "None": None}
_QUOTED = re.compile(r'"(\\.|[^"\\])*"', re.DOTALL)
_PAIRS = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class Written:
    """One method as it was written.

    Attributes:
        name: as given; `compose` for several in a row.
        parameters: JSON values.
    """

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)


def parse(text: str) -> Written:
    """Take the text of a method apart.

    Raises:
        ConfigurationError: it is not written so.
    """
    text = text.strip()
    members = split(text, "+")
    if len(members) > 1:
        return Written(COMPOSE, {"methods": [_member(one, text) for one in members]})
    name, *rest = split(text, ":", 1)
    if name.startswith("(") and name.endswith(")"):
        inner = parse(name[1:-1])
        if inner.name != COMPOSE:
            raise ConfigurationError(
                f"{text}: parentheses hold methods in a row, such as (fastervlm + fastv):keep=1/9."
            )
        return Written(COMPOSE, inner.parameters | _parameters(rest, text))
    if not name:
        raise ConfigurationError(f"{text!r} names no method; `foveate methods` lists them.")
    return Written(name, _parameters(rest, text))


def write(name: str, parameters: Mapping[str, Any]) -> str:
    """The text that `parse` reads so."""
    given = {key: value for key, value in parameters.items() if key != "methods"}
    name = f"({' + '.join(parameters['methods'])})" if "methods" in parameters else name
    pairs = ",".join(f"{key}={_written(value)}" for key, value in given.items())
    return f"{name}:{pairs}" if pairs else name


def split(text: str, separator: str, most: int = -1) -> list[str]:
    """The parts between separators that stand outside quotes and brackets.

    Raises:
        ConfigurationError: a quote or bracket that is not closed.
    """
    parts: list[str] = []
    awaited, start = "", 0
    blank = _QUOTED.sub(lambda found: " " * len(found[0]), text)
    for place, character in enumerate(blank):
        if character == '"':
            raise ConfigurationError(f"{text}: a quote is missing.")
        if character in _PAIRS:
            awaited = _PAIRS[character] + awaited
        elif awaited and character == awaited[0]:
            awaited = awaited[1:]
        elif character == separator and not awaited and len(parts) != most and not _is_exponent(text, place):
            parts.append(text[start:place])
            start = place + 1
    if awaited:
        raise ConfigurationError(f"{text}: {awaited[0]} is missing.")
    return [part.strip() for part in (*parts, text[start:])]


def parse_value(text: str) -> Any:
    """A parameter's value: JSON, a Python word (`True`, `None`), a fraction, a percentage, else the text itself."""
    if text in _WORDS:
        return _WORDS[text]
    try:
        return json.loads(text)
    except ValueError:
        share = parse_share(text)
        return text if share is None else share


def parse_share(text: str) -> float | None:
    """A fraction (`1/9`) or percentage (`11%`) as a number, None if it is neither."""
    if re.fullmatch(r"\d+\s*/\s*0*[1-9]\d*", text):
        return float(Fraction(text.replace(" ", "")))
    if re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*%", text):
        return float(Fraction(text.rstrip("% ")) / 100)
    return None


def parse_keeps(texts: Sequence[str]) -> list[float | int]:
    """`["1/9,0.5", "64", "11%"]` -> `[0.111..., 0.5, 64, 0.11]`: ratios, fractions, percentages and whole numbers of
    tokens. `1` is one token, `1.0` and `100%` are everything.

    Raises:
        ConfigurationError: none of these.
    """
    keeps: list[float | int] = []
    for part in (part.strip() for text in texts for part in text.split(",")):
        share = parse_share(part)
        try:
            keeps.append(share if share is not None else int(part) if re.fullmatch(r"\d+", part) else float(part))
        except ValueError as error:
            raise ConfigurationError(
                f"--keep {part}: write a ratio (0.11), a fraction (1/9), a percentage (11%) or a count (64)."
            ) from error
    return keeps


def one_budget(text: str) -> float | int:
    """The budget that `--keep` names, of which a question can have only one.

    Raises:
        ConfigurationError: no ratio, fraction or count, or several.
    """
    budgets = parse_keeps([text])
    if len(budgets) > 1:
        raise ConfigurationError(f"--keep {text}: one budget a question; `foveate eval` compares several.")
    return budgets[0]


def _member(text: str, whole: str) -> str:
    if not text or text.startswith("(") or text.endswith(".json"):
        raise ConfigurationError(
            f"{whole}: methods in a row are names with their parameters, such as fastervlm:keep=1/3 + fastv; "
            f"{text or 'nothing'!r} is none."
        )
    return text


def _parameters(rest: Sequence[str], whole: str) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    for pair in filter(None, split(rest[0], ",") if rest else []):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not name:
            raise ConfigurationError(f"{whole}: expected name:parameter=value,parameter=value, got {pair!r}.")
        if name in parameters:
            raise ConfigurationError(f"{whole}: {name} is given twice.")
        parameters[name] = parse_value(value)
    return parameters


def _written(value: Any) -> str:
    """A value so that `parse_value` gives it back; text that means nothing else stands as it is."""
    if isinstance(value, str) and not set(value) & set(',:+()[]{}"') and value == value.strip() == parse_value(value):
        return value
    return json.dumps(value)


def _is_exponent(text: str, place: int) -> bool:
    """Whether the plus sign belongs to a number such as 1e+3."""
    return (
        text[place] == "+"
        and re.search(r"\d\.?[eE]$", text[:place]) is not None
        and text[place + 1 : place + 2].isdigit()
    )
