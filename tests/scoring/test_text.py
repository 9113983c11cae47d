"""Normal forms of text: what they make equal, what they keep apart, that they are idempotent."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.scoring.metrics import normalise_vqa
from foveate.scoring.text import folded, number, plain, spelled, tokens, ungrouped

FORMS = (spelled, folded, plain, normalise_vqa, ungrouped)
TRICKY = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]), st.sampled_from("aeE'.,1 2-\u0301\u0345\u3099\uff21\uff9e\u00c5ſß")
    )
)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@given(text=TRICKY)
def test_normalisation_is_idempotent(form: Callable[[str], str], text: str) -> None:
    assert form(form(text)) == form(text)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_normalisation_is_idempotent_on_every_character(form: Callable[[str], str]) -> None:
    for code in range(0x30000):
        text = form(f"e{chr(code)}\u0301")
        assert form(text) == text, hex(code)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Ａ１！", "A1!"),
        ("ｶﾞ", "ガ"),
        ("cafe\u0301", "caf\u00e9"),
        ("\u212b", "\u00c5"),
        ("\u201cit\u2019s\u201d", '"it\'s"'),
        ("1\u22122", "1-2"),
        ("re\u00add\ufeff", "red"),
        ("5²", "5²"),
        ("½", "½"),
        ("ﬁsh", "ﬁsh"),
    ],
)
def test_spelling(text: str, same: str) -> None:
    assert spelled(text) == same


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Red, star!", ["red", "star"]),
        ("-3.5 to 1,000", ["-3.5", "to", "1000"]),
        ("1,2,3", ["1", "2", "3"]),
        ("1,5", ["1,5"]),
        ("(.5)", [".5"]),
        ("C++ c# A+ a+b", ["c++", "c#", "a+", "a", "b"]),
        ("東京 tower", ["東", "京", "tower"]),
        ("ガ", ["ガ"]),
        ("หมู่", ["ห", "มู่"]),
        ("हिन्दी", ["हिन्दी"]),
        ("?!", []),
    ],
)
def test_tokens(text: str, found: list[str]) -> None:
    assert tokens(text) == found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", "5"),
        ("-0.5", "-0.5"),
        ("+.5", "0.5"),
        ("1,040.5", "1040.5"),
        ("2E-3", "0.002"),
        ("5%", "0.05"),
        ("５", "5"),
        ("5.", "5"),
        ("1,5", None),
        ("1,,000", None),
        ("1_000", None),
        ("0x10", None),
        ("inf", None),
        ("nan", None),
        ("5 cm", None),
        ("", None),
        ("%", None),
        ("1e", None),
        ("1e99999999999999999999", None),
    ],
)
def test_numbers(text: str, value: str | None) -> None:
    assert number(text) == (None if value is None else Decimal(value))


@given(TRICKY)
def test_reading_never_raises(text: str) -> None:
    found = number(text)
    assert found is None or found.is_finite()
    assert all(tokens(text))
