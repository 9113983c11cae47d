"""Methods as people write them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.errors import ConfigurationError
from foveate.specs.grammar import Written, one_budget, parse, parse_keeps, parse_value, write


@pytest.mark.parametrize(
    ("text", "name", "parameters"),
    [
        ("vitcop", "vitcop", {}),
        (" vitcop : keep = 1/9 , deep_layer = 20 ", "vitcop", {"keep": 1 / 9, "deep_layer": 20}),
        ("random:keep=64,seed=1e+3", "random", {"keep": 64, "seed": 1000.0}),
        ("random:keep=11%", "random", {"keep": 0.11}),
        ("sparsevlm:layers=[2,6,15],recycled=None", "sparsevlm", {"layers": [2, 6, 15], "recycled": None}),
        ("glimpse:module=/models/a-b/glimpse", "glimpse", {"module": "/models/a-b/glimpse"}),
        ('glimpse:module="/odd, a+b:(c",per=image', "glimpse", {"module": "/odd, a+b:(c", "per": "image"}),
        ("a + b:x=1+c", "compose", {"methods": ["a", "b:x=1", "c"]}),
        ("(a+b:keep=1/3):keep=1/9", "compose", {"methods": ["a", "b:keep=1/3"], "keep": 1 / 9}),
    ],
)
def test_what_is_written(text: str, name: str, parameters: dict[str, Any]) -> None:
    found = parse(text)
    assert found == Written(name, parameters)
    assert parse(write(found.name, found.parameters)) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no method"),
        ("vitcop:keep", "parameter=value"),
        ("vitcop:=3", "parameter=value"),
        ("vitcop:keep=1/9,keep=1/3", "keep is given twice"),
        ("vitcop:layers=[2,3", r"\] is missing"),
        ('glimpse:module="/a', "a quote is missing"),
        ("a + ", "'nothing' is none"),
        ("(a):keep=1/9", "parentheses hold methods in a row"),
        ("(a + b) + c", "is none"),
        ("a + tuned.json", "is none"),
    ],
)
def test_what_is_not_written_so(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        parse(text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), VALUES, max_size=4))
@settings(max_examples=200, deadline=None)
def test_what_is_written_is_read_back(parameters: dict[str, Any]) -> None:
    parameters.pop("methods", None)
    assert parse(write("vitcop", parameters)) == Written("vitcop", parameters)


def test_budgets() -> None:
    found = parse_keeps(["1/9, 0.5", "64", "1", "11%", "100%", "1.0", "12.5 %"])
    assert found == [1 / 9, 0.5, 64, 1, 0.11, 1.0, 1.0, 0.125]
    assert [type(one) for one in found] == [float, float, int, int, float, float, float, float]
    assert one_budget("1/3") == 1 / 3


@pytest.mark.parametrize("text", ["much", "1/0", "", "%", "1/9%", "nan%", "0x3"])
def test_no_budgets(text: str) -> None:
    with pytest.raises(ConfigurationError, match="write a ratio"):
        parse_keeps([text])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("True", True),
        ("false", False),
        ("None", None),
        ("0.25", 0.25),
        ("50%", 0.5),
        ("abc%", "abc%"),
        ("1/9/3", "1/9/3"),
    ],
)
def test_values(text: str, value: Any) -> None:
    assert parse_value(text) == value
