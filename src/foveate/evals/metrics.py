"""Scores of one answer against one or more references, each in [0, 1]."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from foveate.errors import FoveateError

Metric = Callable[[str, Sequence[str]], float]


class MetricError(FoveateError, ValueError):
    """An unknown metric, or references that it cannot score."""


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if equal to an answer, apart from case, surrounding white space and a final full stop."""
    return float(_plain(prediction) in {_plain(answer) for answer in answers})


def contains(prediction: str, answers: Sequence[str]) -> float:
    """1 if an answer stands in the prediction as whole words."""
    words = f" {_words(prediction)} "
    return float(any(f" {_words(answer)} " in words for answer in answers if _words(answer)))


def relaxed_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """ChartQA (arXiv 2203.10244): numbers within 5 % of the answer, other text equal apart from case.

    A percent sign divides by 100 on either side, so that `5%` equals `0.05`.
    """
    return float(any(_relaxed(prediction, answer) for answer in answers))


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of one answer (ST-VQA, arXiv 1905.13648, section 4).

    `1 - distance / longer length` for the nearest answer; below 0.5 it counts as 0. Case and repeated white
    space do not count.
    """
    found = " ".join(prediction.lower().split())
    best = 0.0
    for answer in answers:
        wanted = " ".join(answer.lower().split())
        longest = max(len(found), len(wanted))
        best = max(best, 1.0 if longest == 0 else 1 - levenshtein(found, wanted) / longest)
    return best if best >= 0.5 else 0.0


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy (arXiv 1505.00468, section 4; leave-one-out mean of the evaluation script of VQA v2).

    Each person's answer is set aside in turn; the prediction scores min(1, equal answers among the rest / 3).
    Both sides are normalised as the script does: lower case, no punctuation or articles, digits for number words.

    Raises:
        MetricError: fewer than four answers, where even unanimous agreement could not score 1.
    """
    if len(answers) < 4:
        raise MetricError(
            f"vqa_accuracy needs the answers of at least 4 people, got {len(answers)}; "
            "for a single reference use exact_match."
        )
    found = normalise_vqa(prediction)
    equal = [found == normalise_vqa(answer) for answer in answers]
    return sum(min(1.0, (sum(equal) - own) / 3) for own in equal) / len(equal)


METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "contains": contains,
    "vqa_accuracy": vqa_accuracy,
    "anls": anls,
    "relaxed_accuracy": relaxed_accuracy,
}


def metric(name: str) -> Metric:
    """A metric by name.

    Raises:
        MetricError: there is none of that name.
    """
    if name not in METRICS:
        raise MetricError(f"No metric is called {name!r}; there are {', '.join(METRICS)}.")
    return METRICS[name]


def levenshtein(a: str, b: str) -> int:
    """Insertions, deletions and substitutions that turn `a` into `b`."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def normalise_vqa(text: str) -> str:
    """Lower case, no punctuation, no articles, digits for number words, apostrophes of contractions removed."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    # the script removes a mark that touches a space (or any, if a thousands comma is about), else puts a space
    comma = re.search(r"\d,\d", text) is not None
    for mark in _MARKS:
        touches = f"{mark} " in text or f" {mark}" in text
        text = text.replace(mark, "" if touches or comma else " ")
    text = re.sub(r"(?<!\d)\.(?!\d)", "", text)
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(_contraction(word) for word in words if word not in ("a", "an", "the"))


def _contraction(word: str) -> str:
    # `dont` and `don't` are the same answer; words that mean something else without the apostrophe stay
    bare = word.replace("'", "")
    return word if bare in _AMBIGUOUS else bare


_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_AMBIGUOUS = frozenset({"hell", "id", "ill", "its", "lets", "shed", "shell", "wed", "well", "were"})


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").strip().casefold()


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _relaxed(prediction: str, answer: str) -> bool:
    found, wanted = _number(prediction), _number(answer)
    if found is None or wanted is None:
        return _plain(prediction) == _plain(answer)
    return found == wanted if wanted == 0 else abs(found - wanted) <= 0.05 * abs(wanted)


def _number(text: str) -> float | None:
    text = _plain(text).replace(",", "")
    percent = text.endswith("%")
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        return None
    return value / 100 if percent else value
