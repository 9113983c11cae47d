"""Letters chosen in free text, a table of what models write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.scoring.choices import choice, unmarked

TABLE = [
    # bare
    ("B", "B"), (" b ", "B"), ("B.", "B"), ("(b)", "B"), ("[B]", "B"), ('"B"', "B"), ("B) red", "B"), ("B: red", "B"),
    ("(c) because", "C"), ("B (red)", "B"), ("Ｂ", "B"), ("（Ｂ）", "B"), ("B is correct", "B"),
    # a line break after the letter
    ("B\nbecause it is red", "B"), ("B\r\nbecause it is red", "B"), ("B\n\nExplanation: option A is blue.", "B"),
    ("B<br>because", "B"), ("Answer:\nB", "B"), ("### Answer\n\nB", "B"),
    # markup
    ("**B**", "B"), ("**B.** red", "B"), ("*B*", "B"), ("__B__", "B"), ("`B`", "B"), ("<b>B</b>", "B"), ("> B", "B"),
    ("The correct answer is **B**.", "B"), ("The correct option is: **(b)**", "B"), ("**Answer:** B", "B"),
    ("<answer>B</answer>", "B"), ("<think>A or C?</think><answer> (b) </answer>", "B"), ('{"answer": "B"}', "B"),
    # TeX
    ("\\boxed{B}", "B"), ("The answer is $\\boxed{\\text{C}}$.", "C"), ("$\\boxed{\\mathrm{(C)}}$", "C"), ("$B$", "B"),
    ("\\(B\\)", "B"), ("\\boxed{A} is tempting, but \\boxed{D}", "D"), ("The answer is B: \\boxed{42}", None),
    ("\\boxed{A, B}", None), ("\\boxed{}", None),
    # a lower-case letter after a keyword
    ("option: b", "B"), ("Option: b because it is red", "B"), ("Answer: b", "B"), ("the answer is b.", "B"),
    ("option b is right", "B"), ("answer: a", "A"), ("The answer is a.", "A"), ("the choice is (a)", "A"),
    # articles and pronouns are no letters
    ("it is a dog", None), ("A dog", None), ("answer: a dog", None), ("Answer: A dog", None),
    ("the answer is a dog", None),
    ("The answer I think is C", None), ("I am sure", None), ("An answer is hard to give", None), ("e.g. this", None),
    ("U.S.", None), ("It's b", None), ("The answer isn't B", None), ("not A", None),
    # two letters choose none
    ("A or B", None), ("A and B", None), ("A, B", None), ("A/B", None), ("A & B", None), ("(A) or (B)", None),
    ("**A** or **B**", None), ("A\nB", None), ("A: B", None), ("Both A and C", None), ("The answer is A or B", None),
    ("The answer is (A) or (B).", None), ("answer: A, C", None), ("The answer is A/B", None),
    ("Answer: A or possibly B", None), ("a or b", None), ("option A or option B", None),
    ("Option A fits. Option B fits.", None), ("A. The answer is B", None),
    # a repeated list of options chooses none, what follows it may
    ("A. red\nB. blue\nC. green", None), ("A. red B. blue C. green", None), ("A. red\nB. blue\nThe answer is B", "B"),
    # another letter that is not chosen
    ("The answer is C, not B.", "C"), ("A, not B", "A"), ("B. because A is wrong", "B"),
    ("B, because option A is wrong", "B"), ("The answer is A. Wait, the answer is B.", "B"),
    ("my choice is (A)", "A"), ("the answer is option D", "D"), ("the answer is A because it fits", "A"),
    ("Answer: B. Option A is wrong.", "B"),
    ("", None), ("none", None), ("red", None), ("3", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "letter"), TABLE)
def test_choices(text: str, letter: str | None) -> None:
    assert choice(text) == letter


@given(st.one_of(st.text(), st.text(st.sampled_from("AaBbIi .,:;()[]{}\\<>*$\n\"'/&answeroptionboxed"), max_size=60)))
def test_a_choice_is_a_letter_or_none_and_never_an_error(text: str) -> None:
    found = choice(text)
    assert found is None or (len(found) == 1 and "A" <= found <= "Z")


@given(
    st.sampled_from("ABCDEFGH"),
    st.sampled_from(["**{}**", "\\boxed{{{}}}", "<b>{}</b>", "`{}`", " {}\n", "({})", "{}."]),
)
def test_markup_changes_no_choice(letter: str, frame: str) -> None:
    for text in (letter, letter.lower()):
        assert choice(frame.format(text)) == letter
        assert choice("The answer is " + frame.format(text)) == letter


@given(
    st.sampled_from("ABCDEFGH"),
    st.sampled_from("ABCDEFGH"),
    st.sampled_from(["{} or {}", "{}/{}", "{}, {}", "{} and {}"]),
)
def test_two_letters_choose_none(one: str, other: str, frame: str) -> None:
    text = frame.format(one, other)
    for whole in (text, f"**{text}**", f"The answer is {text}", f"option: {text}.", f"\\boxed{{{text}}}"):
        assert choice(whole) is None


@pytest.mark.parametrize("filler", [" ", "\n ", "\\boxed{", "<answer>", "A. ", "answer is ", "<", "*", "A or "])
def test_long_texts_take_no_longer_than_they_are(filler: str) -> None:
    choice("The answer is" + filler * 20_000)  # the time limit of the tests is the assertion


def test_unmarked() -> None:
    assert unmarked("**Score**:\u00a0 `0.8`\r\n\r\n<i>done</i>") == "Score: 0.8\ndone"
