"""Metrics against cases computed by hand and the definitions' published examples."""

from __future__ import annotations

import pytest

from foveate.evals.metrics import (
    METRICS,
    MetricError,
    anls,
    contains,
    exact_match,
    levenshtein,
    metric,
    normalise_vqa,
    relaxed_accuracy,
    vqa_accuracy,
)


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("Red.", ["red"], 1),
        (" red ", ["blue", "Red"], 1),
        ("dark red", ["red"], 0),
        ("", ["red"], 0),
        ("7", ["7.0"], 0),
    ],
)
def test_exact_match(prediction: str, answers: list[str], score: float) -> None:
    assert exact_match(prediction, answers) == score


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("It is a red star.", ["red star"], 1),
        ("It is hatred", ["red"], 0),  # whole words only
        ("The answer: B", ["b"], 1),
        ("anything", ["?"], 0),  # an answer without words is never contained
    ],
)
def test_contains(prediction: str, answers: list[str], score: float) -> None:
    assert contains(prediction, answers) == score


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [
        ("105", "100", 1),
        ("105.1", "100", 0),
        ("95", "100", 1),
        ("94.9", "100", 0),
        ("-95", "-100", 1),
        ("0.001", "0", 0),
        ("5%", "0.05", 1),
        ("1,040", "1000", 1),
        ("Yes", "yes", 1),
        ("about 100", "100", 0),
    ],
)
def test_relaxed_accuracy(prediction: str, answer: str, score: float) -> None:
    assert relaxed_accuracy(prediction, [answer]) == score


@pytest.mark.parametrize(
    ("a", "b", "distance"), [("kitten", "sitting", 3), ("flaw", "lawn", 2), ("", "abc", 3), ("same", "same", 0)]
)
def test_levenshtein(a: str, b: str, distance: int) -> None:
    assert levenshtein(a, b) == distance == levenshtein(b, a)


def test_anls() -> None:
    assert anls("Coca Cola", ["coca  cola"]) == 1
    assert anls("coca col", ["coca cola", "pepsi"]) == pytest.approx(1 - 1 / 9)
    assert anls("abcd", ["abxy"]) == 0.5  # the threshold itself still counts
    assert anls("abc", ["axy"]) == 0  # similarity 1/3
    assert anls("", [""]) == 1
    assert anls("", ["x"]) == 0


def test_vqa_accuracy_of_agreeing_people() -> None:
    for equal, score in [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]:
        # with k of 10 equal: k leave-one-out sets see k - 1 of them, 10 - k sets see k
        by_hand = (equal * min(1, (equal - 1) / 3) + (10 - equal) * min(1, equal / 3)) / 10
        assert by_hand == pytest.approx(score)
        assert vqa_accuracy("yes", ["yes"] * equal + ["no"] * (10 - equal)) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The Dog.", "dog"),
        ("two dogs", "2 dogs"),
        ("none", "0"),
        ("don't know", "dont know"),
        ("dont know", "dont know"),
        ("it's well", "it's well"),
        ("1,000", "1000"),
        ("3.5 m", "3.5 m"),
        ("red/blue", "red blue"),
        ("yes, sir!", "yes sir"),
        ("a\nb\tc", "b c"),
    ],
)
def test_normalisation_of_vqa(text: str, plain: str) -> None:
    assert normalise_vqa(text) == plain


def test_too_few_people_are_refused() -> None:
    with pytest.raises(MetricError, match="at least 4 people, got 1"):
        vqa_accuracy("yes", ["yes"])


def test_unknown_metric() -> None:
    with pytest.raises(MetricError, match="'bleu'.*exact_match"):
        metric("bleu")


@pytest.mark.parametrize("name", METRICS)
def test_scores_lie_between_zero_and_one(name: str) -> None:
    for prediction in ("", "x", "12", "five %", "."):
        assert 0 <= metric(name)(prediction, ["12", "x", "y", "12 x"]) <= 1
