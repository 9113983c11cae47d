"""Metrics against cases computed by hand and the definitions' published examples."""

from __future__ import annotations

import unicodedata
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.scoring import METRICS, MetricError, metric
from foveate.scoring.metrics import (
    anls,
    contains,
    exact_match,
    levenshtein,
    multiple_choice,
    normalise_vqa,
    relaxed_accuracy,
    vqa_accuracy,
)
from foveate.training.plus import rewards


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("Red.", ["red"], 1),
        (" red ", ["blue", "Red"], 1),
        ("dark red", ["red"], 0),
        ("", ["red"], 0),
        ("7", ["7.0"], 0),
        ("caf\u00e9", ["cafe\u0301"], 1),  # NFC against NFD
        ("cafe", ["caf\u00e9"], 0),
        ("ＡＢＣ　１２", ["abc 12"], 1),  # full-width
        ("ﾃﾞｰﾀ", ["データ"], 1),  # half-width, its mark composed
        ("5²", ["52"], 0),  # a superscript is no digit
        ("STRASSE", ["stra\u00dfe"], 1),
        ("don\u2019t", ["don't"], 1),
        ("\u22125", ["-5"], 1),
        ("red\u200b", ["red"], 1),
        ("red\n star", ["red star"], 1),
        ("红色。", ["红色"], 1),
        (".", ["red", ""], 0),
        ("...", ["."], 0),
        ("nan", ["5"], 0),
        ("inf", ["5"], 0),
        ("3", ["3.5"], 0),
        ("3.", ["3"], 1),
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
        ("anything", ["?"], 0),  # an answer without words is not contained, it can only be the whole
        ("?", ["?"], 1),
        ("It is 3.5 cm.", ["3"], 0),
        ("It is 3.5 cm.", ["5"], 0),
        ("It is 3.5 cm.", ["3.5"], 1),
        ("It is 3.", ["3"], 1),
        ("3, I think", ["3"], 1),
        ("It says .5", ["5"], 0),
        ("It is -5 outside", ["5"], 0),
        ("It is -5 outside", ["-5"], 1),
        ("Between 2-3 of them", ["3"], 1),  # a range
        ("a t-shirt", ["shirt"], 1),
        ("It costs 1,000 in all", ["1000"], 1),
        ("It costs 1,000 in all", ["1"], 0),
        ("1,2,3", ["2"], 1),  # a list
        ("At 10:30", ["30"], 0),
        ("3/4 of it", ["3"], 0),
        ("v3.5 of it", ["v3"], 0),
        ("It is 25%", ["25"], 1),  # a unit, as in 25 cm
        ("Written in C++", ["C"], 0),
        ("Written in C++, or so", ["c++"], 1),
        ("Written in C", ["C++"], 0),
        ("C# and F", ["C"], 0),
        ("C++11", ["C"], 0),
        ("Grade: A+", ["A"], 0),
        ("a+b", ["b"], 1),
        ("答えは東京です", ["東京"], 1),  # no spaces
        ("答えは東京です", ["京都"], 0),
        ("답은 빨간색입니다", ["빨간색"], 1),  # particles attached
        ("มีแมวสองตัว", ["แมว"], 1),
        ("有3个", ["3"], 1),
        ("有3.5个", ["3"], 0),
        ("हिन्दी में", ["ह"], 0),  # a word with vowel signs is one word
        ("हिन्दी में", ["हिन्दी"], 1),
        ("un cafe\u0301 noir", ["caf\u00e9"], 1),
        ("ｒｅｄ　ｓｔａｒ", ["star"], 1),
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
        ("1.05", "1", 1),  # 5 % exactly, though not in binary fractions
        ("0.95", "1", 1),
        ("1.0500000001", "1", 0),
        ("inf", "5", 0),  # infinity is within 5 % of nothing
        ("5", "inf", 0),
        ("7", "infinity", 0),
        ("-inf", "inf", 0),
        ("inf", "Inf", 1),  # the same text
        ("nan", "5", 0),
        ("5", "nan", 0),
        ("NaN", "nan", 1),
        ("1e999", "5", 0),
        ("5", "1e999", 0),
        ("1e9999", "1e9998", 0),  # no number that is read
        ("1_000", "1000", 0),
        ("1,5", "15", 0),  # a decimal comma groups nothing
        ("1,000,000", "1000000", 1),
        ("12,34,567", "1234567", 1),
        ("1,00", "100", 0),
        ("１００", "100", 1),
        ("\u221295", "-100", 1),
        ("٣", "3", 1),
        ("5 %", "5%", 1),
        ("5", "5%", 0),
        ("0.0", "0", 1),
        ("5.", "5", 1),
        ("cafe\u0301", "caf\u00e9", 1),
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
    assert anls("cafe\u0301", ["caf\u00e9"]) == 1
    assert anls("ＡＢＣ", ["abc"]) == 1


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
        ("3.", "3"),
        ("red, blue/green", "red blue green"),  # a mark is treated alike wherever it stands
        ("1,000 red/blue", "1000 red blue"),
        ("1,5", "1 5"),
        ("'one'", "1"),
        ("don\u2019t", "dont"),
        ("cafe\u0301", "caf\u00e9"),
        ("ＴＷＯ　ｄｏｇｓ", "2 dogs"),
    ],
)
def test_normalisation_of_vqa(text: str, plain: str) -> None:
    assert normalise_vqa(text) == plain


def test_too_few_people_are_refused() -> None:
    with pytest.raises(MetricError, match="at least 4 people, got 1"):
        vqa_accuracy("yes", ["yes"])


def test_choices_are_a_metric() -> None:
    assert multiple_choice("**B**, because it is red", ["(b)"]) == 1
    assert multiple_choice("B", ["B. red"]) == 1
    assert multiple_choice("A or B", ["A"]) == 0
    assert multiple_choice("red", ["red"]) == 0  # no letter equals no letter


def test_rewards_and_evaluation_mean_the_same() -> None:
    for name in ("exact_match", "anls", "multiple_choice"):
        for said in ("Red.", "ｒｅｄ", "(b) red", "red\n", "rod"):
            for answer in ("red", "B"):
                assert rewards.TEXT[name](said, answer) == METRICS[name](said, [answer])


def test_unknown_metric() -> None:
    with pytest.raises(MetricError, match="'bleu'.*exact_match.*lmms:anls"):
        metric("bleu")


TEXTS = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("0123456789.,+-%/ aB\u0301'")))


@pytest.mark.parametrize("name", METRICS)
@given(prediction=TEXTS, answers=st.lists(TEXTS, min_size=4, max_size=5))
def test_scores_lie_between_zero_and_one(name: str, prediction: str, answers: list[str]) -> None:
    assert 0 <= metric(name)(prediction, answers) <= 1


@pytest.mark.parametrize("name", ["exact_match", "contains", "anls", "vqa_accuracy", "relaxed_accuracy"])
@given(text=TEXTS, form=st.sampled_from(["NFC", "NFD"]))
def test_a_text_in_another_unicode_form_is_the_same(name: str, text: str, form: str) -> None:
    assert metric(name)(unicodedata.normalize(form, text), [text] * 4) == 1


@given(prediction=TEXTS, answer=TEXTS)
def test_what_is_equal_is_contained(prediction: str, answer: str) -> None:
    assert contains(prediction, [answer]) >= exact_match(prediction, [answer])


@given(number=st.decimals(allow_nan=False, allow_infinity=False, min_value=-1000, max_value=1000, places=3))
def test_a_number_is_contained_only_whole(number: Decimal) -> None:
    text = f"it is {number} in all"
    assert contains(text, [str(number)]) == 1
    assert contains(text, [str(number).lstrip("-").split(".")[0]]) == 0


@given(answer=st.text(max_size=20), said=st.sampled_from(["inf", "-inf", "nan", "Infinity", "1e999", "-1e999"]))
def test_infinities_equal_only_themselves(answer: str, said: str) -> None:
    same = exact_match(said, [answer])
    assert relaxed_accuracy(said, [answer]) == relaxed_accuracy(answer, [said]) == same


@given(TEXTS, TEXTS)
def test_distance_is_symmetric_and_bounded(a: str, b: str) -> None:
    assert levenshtein(a, b) == levenshtein(b, a) <= max(len(a), len(b))
