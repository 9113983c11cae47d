"""lmms-eval's metrics, equal to the bit (0.7.3), for numbers that stand beside numbers of lmms-eval.

They differ from ours where its code does something else than the metric's definition says; `docs/metrics.md` lists
where. Known by their behaviour: `tests/golden/metrics` has what its own functions returned. Predictions are taken as
they are given; lmms-eval strips them first, as `foveate eval` does.
"""

from __future__ import annotations

import re
import statistics
import string
from collections.abc import Sequence

from foveate.scoring.metrics import MetricError, levenshtein


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """`exact_match` with `ignore_case` and `ignore_punctuation`, as its tasks (GQA and others) set it; any answer."""
    found = _without_punctuation(prediction)
    return float(any(found == _without_punctuation(answer) for answer in answers))


def anls(prediction: str, answers: Sequence[str]) -> float:
    """`anls`: the distance is that of the cleaned texts, but divided by the length of the longer raw one."""
    if not answers:
        raise MetricError("lmms:anls needs at least one answer; lmms-eval stops there too.")
    found, shares = " ".join(prediction.lower().split()), []
    for answer in answers:
        longest = max(len(answer.upper()), len(prediction.upper()))
        distance = levenshtein(" ".join(answer.lower().split()), found)
        shares.append(distance / longest if longest else 0.0)
    score = 1 - min(shares)
    return 0.0 if score < 0.5 else score


def relaxed_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """`relaxed_correctness` of ChartQA: numbers are what Python's `float` reads, and a reference of 0 is text."""
    return float(any(_relaxed(prediction, answer) for answer in answers))


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The score of TextVQA, OK-VQA and VizWiz: commas, question marks and `'s` are taken apart before the rest."""
    return _agreement(_normal(_split(prediction)), [_normal(_split(answer)) for answer in answers])


def vqav2(prediction: str, answers: Sequence[str]) -> float:
    """The score of VQAv2, whose normalisation is that of the others without the first step."""
    return _agreement(_normal(prediction), [_normal(answer) for answer in answers])


def _without_punctuation(text: str) -> str:
    # it works in NumPy's arrays of strings: as long as the text was before it was lowered, and never with a NUL last
    lowered = text.rstrip("\0").lower()[: max(len(text), 1)].rstrip("\0")
    return lowered.translate(_PUNCTUATION).rstrip("\0")


def _relaxed(prediction: str, answer: str) -> bool:
    found, wanted = _float(prediction), _float(answer)
    if found is None or not wanted:
        return prediction.lower() == answer.lower()
    return abs(found - wanted) / abs(wanted) <= 0.05


def _float(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _agreement(found: str, answers: Sequence[str]) -> float:
    if not answers:
        return 0.0
    equal = [answer == found for answer in answers]
    return float(statistics.mean(min(1.0, (sum(equal) - own) / 3) for own in equal))


def _split(text: str) -> str:
    return text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()


def _normal(text: str) -> str:
    text = text.replace("\n", " ").replace("\t", " ").strip()
    grouped = re.search(r"\d,+\d", text) is not None
    plain = text
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        gone = grouped or f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if gone else " ")
    plain = re.sub(r"\.(?!\d)", "", plain, count=32)  # its flag stands where the count is
    words = (_DIGITS.get(word, word) for word in plain.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))


_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(value) for value, word in enumerate(_NUMBERS)}

# what the evaluation script of VQA knows; each is equal to itself with any one apostrophe left out
_KNOWN = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've
    something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't
    we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll
    who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've
    you'll you're you've
"""
_CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word for word in _KNOWN.split() for i, sign in enumerate(word) if sign == "'"
}
