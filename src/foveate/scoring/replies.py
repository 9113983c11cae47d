"""The number in a judge model's reply."""

from __future__ import annotations

import re

from foveate.scoring.choices import unmarked


def judge_score(text: str) -> float | None:
    """The score that a reply states, or None unless it states exactly one and that is a number from 0 to 1.

    `score: 0.8`, also in markup or JSON, also `8e-1`. Nothing is cut to the range or worked out: 1.5, 80%, 8/10,
    `0.8 out of 1`, `0,8`, ranges and two scores are no score. Whether a judge that states none costs the policy is for
    the caller to decide.
    """
    text = unmarked(text)
    found = list(_STATED.finditer(text))
    if len(found) != 1:
        return None
    value = _NUMBER.match(text, found[0].end())
    if value is None or _CONTINUES.match(text, value.end()):
        return None
    score = float(value[0])
    return abs(score) if 0 <= score <= 1 else None  # -0 is 0


_STATED = re.compile(r"\bscores?\b[\"']?[ \t]*(?:(?:[:=]|(?:is|of)\b)[ \t]*)*[\"']?(?=[-+]?\.?[0-9])", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[-+]?[0-9]+)?", re.IGNORECASE)
# what makes the number before it another one, or one of several
_CONTINUES = re.compile(
    r"\w|[ \t]*[/%‰÷×±*^~+–—-]|[.,:'][ \t]*[0-9]|[ \t]*(?:percent|per cent|out of|of|to|or|and|points?)\b",
    re.IGNORECASE,
)
