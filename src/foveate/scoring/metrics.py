"""Scores of one answer against one or more references, each in [0, 1]."""

from __future__ import annotations

import re
import statistics
import unicodedata
from collections.abc import Sequence

from foveate.errors import FoveateError
from foveate.scoring.choices import choice
from foveate.scoring.text import folded, number, plain, tokens, ungrouped


class MetricError(FoveateError, ValueError):
    """An unknown metric, or references that a metric cannot score.

    Remedy: choose a metric of docs/metrics.md that fits the number of references.
    """


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if equal to an answer, apart from Unicode form, case, white space around and its amount, final full stops."""
    return float(plain(prediction) in {plain(answer) for answer in answers})


def contains(prediction: str, answers: Sequence[str]) -> float:
    """1 if an answer stands in the prediction as whole words and numbers, or is all of it.

    3 does not stand in 3.5, nor C in C++; in scripts without spaces any run of characters counts.
    """
    found = tokens(prediction)
    return float(exact_match(prediction, answers) or any(_within(tokens(answer), found) for answer in answers))


def multiple_choice(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction chooses the letter of an answer (`B`, `(b)`, `B. red`); see `choices.choice`."""
    chosen = choice(prediction)
    return float(chosen is not None and chosen in {choice(answer) for answer in answers})


def relaxed_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """ChartQA (arXiv 2203.10244): numbers within 5 % of the answer, other text equal as in `exact_match`.

    A percent sign divides by 100 on either side, so that `5%` equals `0.05`; commas count only between groups of
    digits. Decimal arithmetic, so that 1.05 is within 5 % of 1. Infinities and NaN are text.
    """
    return float(any(_relaxed(prediction, answer) for answer in answers))


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of one answer (ST-VQA, arXiv 1905.13648, section 4).

    `1 - distance / longer length` for the nearest answer; below 0.5 it counts as 0. Unicode form, case and repeated
    white space do not count, in the distance as in the length.
    """
    found = folded(prediction)
    best = 0.0
    for answer in answers:
        wanted = folded(answer)
        longest = max(len(found), len(wanted))
        best = max(best, 1.0 if longest == 0 else 1 - levenshtein(found, wanted) / longest)
    return best if best >= 0.5 else 0.0


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy (arXiv 1505.00468, section 4; leave-one-out mean of the evaluation script of VQA v2).

    Each person's answer is set aside in turn; the prediction scores min(1, equal answers among the rest / 3), both
    sides normalised by `normalise_vqa`.

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
    return statistics.mean(min(1.0, (sum(equal) - own) / 3) for own in equal)


def levenshtein(a: str, b: str) -> int:
    """Insertions, deletions and substitutions that turn `a` into `b`."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def normalise_vqa(text: str) -> str:
    """Folded, without punctuation and articles, digits for number words, contractions without apostrophes.

    Follows the evaluation script of VQA v2, except that a mark is treated alike wherever it stands (the script joins
    the words beside it if another one touches a space or a thousands comma is about), that only a comma between
    groups of digits joins them, and that Unicode forms do not count.
    """
    text = ungrouped(folded(text)).translate(_MARKS)
    text = unicodedata.normalize("NFC", re.sub(r"\.(?!\d)", "", text))
    bare = (_contraction(word) for word in text.split())
    return " ".join(_DIGITS.get(word, word) for word in bare if word not in ("", "a", "an", "the"))


def _contraction(word: str) -> str:
    # `dont` and `don't` are the same answer; words that mean something else without the apostrophe stay
    bare = unicodedata.normalize("NFC", word.replace("'", ""))
    return word if bare in _AMBIGUOUS else bare


_MARKS = dict.fromkeys(map(ord, ';/[]"{}()=+\\_-><@`,?!'), " ")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(value) for value, word in enumerate(_NUMBERS)}
_AMBIGUOUS = frozenset({"hell", "id", "ill", "its", "lets", "shed", "shell", "wed", "well", "were"})


def _within(wanted: list[str], found: list[str]) -> bool:
    n = len(wanted)
    return n > 0 and any(found[i : i + n] == wanted for i in range(len(found) - n + 1))


def _relaxed(prediction: str, answer: str) -> bool:
    found, wanted = number(prediction), number(answer)
    if found is None or wanted is None:
        return plain(prediction) == plain(answer)
    return abs(found - wanted) * 20 <= abs(wanted)
