"""Rewards for answers, each in [0, 1], and parsing of a judge model's score.

Source: GlimpsePrune+ (https://github.com/HVision-NKU/GlimpsePrune); `single_choice` is stricter on purpose.
"""

import math
import re

_BOX = re.compile(r"\[\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*\]")
_JUDGE_SCORE = re.compile(r"score: (\d*\.?\d+)", re.IGNORECASE)
_LEADING_CHOICE = re.compile(r"\s*(?:\(([a-z])\)|([a-z])(?=\s*$|[.):,]))", re.IGNORECASE)
_STATED_CHOICE = re.compile(r"\b(?:answer|choice|option)\s*(?:is|:)?\s*(?:\(([a-z])\)|([A-Z])\b)")


def exact_match(completion: str, answer: str) -> float:
    """1 if both are equal after stripping white space and ignoring case, else 0."""
    return float(completion.strip().lower() == answer.strip().lower())


def single_choice(completion: str, answer: str) -> float:
    """1 if the completion chooses the letter `answer`, else 0.

    A choice is a letter that opens the completion (`B`, `B.`, `(b) because ...`) or follows "answer is",
    "choice is", "option". Unlike the official reward, "it is a dog" does not choose A and "my choice "
    "is (A)" does.
    """
    match = _LEADING_CHOICE.match(completion)
    if match is None:
        lowered = re.sub(r"\(([A-Za-z])\)", lambda m: f"({m[1].lower()})", completion)
        found = list(_STATED_CHOICE.finditer(lowered))
        match = found[-1] if found else None
    if match is None:
        return 0.0
    return float((match[1] or match[2]).lower() == answer.strip().lower())


def box_iou(completion: str, answer: str) -> float:
    """Intersection over union of the first box `[x0, y0, x1, y1]` in either text; 0 if one has none."""
    one, other = _first_box(completion), _first_box(answer)
    if one is None or other is None:
        return 0.0
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    shared = width * height
    union = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)) - shared
    return shared / (union + 1e-6)


def box_format(completion: str) -> float:
    """1 if the completion contains exactly one box `[x0, y0, x1, y1]`, else 0."""
    return float(len(_BOX.findall(completion)) == 1)


def parse_judge_score(text: str) -> float | None:
    """The judge's score, cut to [0, 1]; None unless the text states exactly one `score: x`.

    The official reward gives 0 where this gives None; whether a judge that fails to answer costs the policy
    is for the caller to decide.
    """
    found = _JUDGE_SCORE.findall(text)
    return min(1.0, float(found[0])) if len(found) == 1 else None


def _first_box(text: str) -> list[float] | None:
    match = _BOX.search(text)
    if match is None:
        return None
    try:
        box = [float(x) for x in match.groups()]
    except ValueError:  # such as "1.2.3"
        return None
    return box if all(math.isfinite(x) for x in box) else None
