"""What a judge may write, and the number in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.scoring.replies import judge_score

TABLE = [
    ("score: 0.8", 0.8), ("Score: 1", 1.0), ("score: 0", 0.0), ("score: .5", 0.5), ("score:0.7", 0.7),
    ("score: 1.", 1.0),
    ("score = 0.4", 0.4), ("score: +0.5", 0.5), ("I compared them.\nscore: 0.5", 0.5), ("score: 0.5.", 0.5),
    ("score: 0, because it is wrong", 0.0), ("score: 1\n2. It means the same.", 1.0), ("score: 0.8 (80%)", 0.8),
    ("subscore: 0.3\nscore: 0.5", 0.5), ("score: 1.000", 1.0), ("score: -0", 0.0),
    # out of range: never cut
    ("score: 1.5", None), ("score: 10", None), ("score: 1.0000001", None), ("score: -0.5", None), ("score: -1", None),
    # percentages
    ("score: 80%", None), ("score: 80 %", None), ("score: 0.5%", None), ("score: 1 percent", None),
    ("score: 1％", None),
    # fractions
    ("score: 1/2", None), ("score: 1 / 2", None), ("score: 8/10", None), ("score: 1/1", None),
    ("score: 0.8 out of 1", None), ("score: 0.8 of 1", None), ("score: $\\frac{1}{2}$", None), ("score: 0.8/1", None),
    # decimal commas
    ("score: 0,8", None), ("score:0,7", None), ("score: 0, 8", None), ("score: 1,000", None),
    # several scores
    ("score: 0.2, score: 0.3", None), ("score: 1\nscore: 0", None), ("score: 1 score: 1", None),
    ("score of 0.3, then score: 0.5", None), ("score: 0.5-0.7", None), ("score: 0.5–0.7", None),
    ("score: 0.5 to 0.7", None), ("score: 0.5 or 0.6", None), ("score: 0.8 ± 0.1", None), ("score: 1+1", None),
    # markup
    ("**score:** 0.8", 0.8), ("**Score**: 0.8", 0.8), ("score: **0.8**", 0.8), ("score: `0.8`", 0.8),
    ("# score: 0.8", 0.8),
    ('{"score": 0.8}', 0.8), ("{'score': '0.8'}", 0.8), ("<b>score: 0.8</b>", 0.8), ("score: \\boxed{0.5}", 0.5),
    ("score: $0.5$", 0.5), ("score: ０．８", 0.8), ("| score: 0.7 |", 0.7), ("**score: 1.5**", None),
    # scientific notation
    ("score: 1e-1", 0.1), ("score: 5E-1", 0.5), ("score: 1e0", 1.0), ("score: 1e3", None), ("score: 1e", None),
    ("score: 1e-400", 0.0), ("score: 1e400", None),
    # no number
    ("score: nan", None), ("score: inf", None), ("score: high", None), ("score: 1_0", None), ("score: 0x1", None),
    ("score: 1.0.0", None), ("score: 1:2", None), ("score: 1 point", None), ("score:\n0.5", None), ("0.5", None),
    ("scored 1", None), ("", None), ("I cannot say", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "score"), TABLE)
def test_scores(text: str, score: float | None) -> None:
    assert judge_score(text) == score


@given(st.text(), st.sampled_from(["", "score: ", "score: 0.", "**Score:** "]))
def test_parsing_never_raises_and_never_leaves_the_range(text: str, before: str) -> None:
    found = judge_score(before + text)
    assert found is None or 0 <= found <= 1


@given(
    st.floats(0, 1),
    st.sampled_from(["score: {}", "**score:** {}", "score: **{}**", '{{"score": {}}}', "ok\nscore: {}\n"]),
)
def test_every_number_of_the_range_is_read(value: float, frame: str) -> None:
    assert judge_score(frame.format(value)) == value


@given(st.floats(allow_nan=False).filter(lambda x: not 0 <= x <= 1))
def test_no_other_number_is(value: float) -> None:
    assert judge_score(f"score: {value}") is None
