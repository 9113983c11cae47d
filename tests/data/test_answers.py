"""Answers in the shapes of published data: the right value, or a refusal."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.data.answers import read_answers
from foveate.errors import DataError

VQA = [{"answer": "yes", "answer_confidence": "yes", "answer_id": 1}, {"answer": "no", "answer_id": 2}]

READ: dict[str, tuple[Any, tuple[str, ...]]] = {
    "text": ("red", ("red",)),
    "text with spaces around": (" red ", (" red ",)),
    "the word none": ("None", ("None",)),
    "a number": (3, ("3",)),
    "zero": (0, ("0",)),
    "a whole float": (3.0, ("3",)),
    "a float": (0.25, ("0.25",)),
    "a decimal": (Decimal("1.50"), ("1.50",)),
    "a whole decimal": (Decimal("3"), ("3",)),
    "list of text": (["2", "two"], ("2", "two")),
    "tuple": (("2", "two"), ("2", "two")),
    "list of numbers": ([2, 2.5], ("2", "2.5")),
    "mixed list": (["two", 2, {"answer": "II"}], ("two", "2", "II")),
    "VQAv2, VizWiz": (VQA, ("yes", "no")),
    "a column of objects": ({"answer": ["yes", "no"], "answer_id": [1, 2]}, ("yes", "no")),
    "an object": ({"answer": "yes"}, ("yes",)),
    "an object with a number": ({"answer": 3}, ("3",)),
    "SQuAD": ({"text": ["Paris"], "answer_start": [3]}, ("Paris",)),
    "list as text, Python": ("['a', \"it's\"]", ("a", "it's")),
    "list as text, JSON": ('["a", "b"]', ("a", "b")),
    "list as text over lines": (" [\n 'a',\n 'b'\n]", ("a", "b")),
    "list of objects as text": (str(VQA), ("yes", "no")),
    "list of objects as JSON": (json.dumps(VQA), ("yes", "no")),
    "numbers as text are an answer": ("[10, 20, 30, 40]", ("[10, 20, 30, 40]",)),
    "an interval": ("[0, 1)", ("[0, 1)",)),
    "brackets": ("[INST]", ("[INST]",)),
    "quotes": ("'a', 'b'", ("'a', 'b'",)),
    "nothing": (None, ()),
    "blank": (" ", ()),
    "empty list": ([], ()),
    "empty list as text": ("[]", ()),
    "column of no objects": ({"answer": [], "answer_id": []}, ()),
}


@pytest.mark.parametrize("case", READ)
def test_known_shapes(case: str) -> None:
    value, expected = READ[case]
    assert read_answers(value) == expected


REFUSED: dict[str, tuple[Any, str]] = {
    "true": (True, "write the word"),
    "not a number": (float("nan"), "nan, no number"),
    "infinite": (float("inf"), "inf, no number"),
    "not a number, as text": ("NaN", "where there is none"),
    "null in a list": (["a", None], "answer 2 of 2: the answer is null"),
    "blank in a list": (["a", "b", " "], "answer 3 of 3: the answer is empty"),
    "not a number in a list": (["a", float("nan")], "answer 2 of 2"),
    "null in VQA": ([{"answer": None}], "answer 1 of 1: the answer is null"),
    "null in an object": ({"answer": None}, "null"),
    "other keys": ({"value": "a", "aliases": []}, "without 'answer' or 'text'; it has value, aliases"),
    "other keys in a list": ([{"label": "a"}], "answer 1 of 1: .*without 'answer'"),
    "lists in a list": ([["a"], ["b"]], "a list in a list"),
    "bytes": (b"a", "not text but bytes"),
    "a cut list": ("['a', 'b", "cut off"),
    "a list as numpy prints it": ("['a' 'b']", "without commas"),
    "text that begins and ends as a list": ("['a' and ['b']", "neither JSON nor Python|without commas"),
    "a list of calls": ("['a', __import__('os')]", "neither JSON nor Python"),
    "half a character": ("\ud800", "half of a character"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_shapes(case: str) -> None:
    value, words = REFUSED[case]
    with pytest.raises(DataError, match=words):
        read_answers(value)


@given(st.lists(st.text(min_size=1).filter(lambda t: t.strip() and t.strip().lower() != "nan"), min_size=1))
def test_lists_survive_being_exported_as_text(answers: list[str]) -> None:
    assert read_answers(json.dumps(answers)) == read_answers(answers) == tuple(answers)
