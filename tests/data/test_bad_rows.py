"""Bad rows are named or skipped, whatever is wrong with them."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foveate.data.reading import read_rows
from foveate.data.rows import Rules
from foveate.errors import DataError, FoveateError

from .test_reading import GOOD, LAZY, RULES, lines

DEEP = "[" * 100_000
BAD: dict[str, tuple[object, str]] = {
    "no answer column": ({"image": "a.png", "question": "q"}, "no column `answer` or `answers`; there are image, q"),
    "no image column": ({"question": "q", "answer": "x"}, "there is no image.*; there are question, answer"),
    "no question column": ({"image": "a.png", "answer": "x"}, "no column `question`"),
    "blank question": (GOOD | {"question": " "}, "the question is empty"),
    "question is null": (GOOD | {"question": None}, "the question is empty"),
    "question is a number": (GOOD | {"question": 3}, "the question is not text but int"),
    "question is half a character": (GOOD | {"question": "\ud800"}, "half of a character"),
    "answer is half a character": (GOOD | {"answer": "\ud800"}, "half of a character"),
    "no answers": (GOOD | {"answer": []}, "the answer is empty"),
    "answer is null": (GOOD | {"answer": None}, "the answer is empty"),
    "answer is not a number": (GOOD | {"answer": float("nan")}, "the answer is nan"),
    "images is empty": ({"images": [], "question": "q", "answer": "x"}, "there is no image"),
    "image is a number": (GOOD | {"image": 3}, "neither a path.*but int"),
    "image is an empty object": (GOOD | {"image": {}}, "neither a path"),
    "image is empty text": (GOOD | {"image": ""}, "neither a path"),
    "a broken line": ('{"image": "a.png"', "it is no JSON"),
    "a line that is a list": ("[1]", "no JSON object but list"),
    "a line of brackets": (DEEP, "it is no JSON"),
    "text": ("hello", "it is no JSON"),
}


@pytest.mark.parametrize("rules", [RULES, LAZY])
@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_named_or_skipped(folder: Path, case: str, rules: Rules) -> None:
    row, words = BAD[case]
    path = lines(folder, GOOD, "", row, GOOD)
    with pytest.raises(DataError, match=rf"(?s)data\.jsonl: 1 of 3 rows .*--skip-bad.*row 3: .*{words}"):
        read_rows(path, rules)
    rows = read_rows(path, Rules(**(vars(rules) | {"skip_bad": True})))
    assert [row.number for row in rows] == [1, 4]
    assert [problem[: len(path) + 8] for problem in rows.skipped] == [f"{path} row 3: "]


@pytest.mark.parametrize("case", [case for case, (row, _) in BAD.items() if isinstance(row, dict)])
def test_bad_elements_of_an_array_are_named_or_skipped(folder: Path, case: str) -> None:
    row, words = BAD[case]
    (folder / "data.json").write_text(json.dumps([GOOD, row]))
    with pytest.raises(DataError, match=rf"(?s)1 of 2 rows.*row 2: .*{words}"):
        read_rows(folder / "data.json", LAZY)


def test_a_line_in_another_encoding(folder: Path) -> None:
    good = json.dumps(GOOD).encode()
    latin = json.dumps(GOOD | {"question": "größer?"}, ensure_ascii=False).encode("latin-1")
    (folder / "data.jsonl").write_bytes(good + b"\n" + latin + b"\n" + good)
    with pytest.raises(DataError, match=r"(?s)1 of 3 rows.*row 2: it is not UTF-8 .*save the file as UTF-8"):
        read_rows(folder / "data.jsonl", LAZY)
    rows = read_rows(folder / "data.jsonl", Rules(needs_boxes=False, skip_bad=True))
    assert [row.number for row in rows] == [1, 3]


def test_many_bad_rows_are_counted(folder: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)8 of 9 rows.*row 2.*row 6: [^\n]*\n  and 3 more$"):
        read_rows(lines(folder, GOOD, *["x"] * 8), RULES)


UNREADABLE: dict[str, tuple[str, bytes | None, str]] = {
    "another suffix": ("data.csv", b"a,b", "rows come from a file that ends in .jsonl"),
    "not there": ("no.jsonl", None, "does not exist"),
    "no parquet": ("bad.parquet", b"PAR1 nonsense", "cannot be read as parquet"),
    "a cut array": ("bad.json", b'[{"image": "a.png"}', "cannot be read as a JSON array"),
    "an array in another encoding": ("bad.json", '["ä"]'.encode("latin-1"), "JSON array: it is not UTF-8"),
    "utf-16 without a mark": ("bad.jsonl", '{"image": "a.png"}'.encode("utf-16-le"), "is not UTF-8"),
    "a mark that lies": ("bad.jsonl", codecs.BOM_UTF8 + b"\xff", "is not: "),
    "empty": ("bad.jsonl", b"\n\n", "no usable row"),
    "empty array": ("bad.json", b"[]", "no usable row"),
    "a folder of something else": ("", b"", "no folder that `Dataset.save_to_disk` wrote"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_tables(tmp_path: Path, case: str) -> None:
    name, content, words = UNREADABLE[case]
    if name and content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_rows(tmp_path / name, Rules(skip_bad=True))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["a.png", "['a']", "data:,"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["bytes", "path", "answer"]), inner),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["image", "images", "question", "answer", "answers", "boxes", "type"]), JSON))
def test_whatever_a_row_holds_it_is_read_or_refused(folder: Path, change: dict) -> None:
    path = lines(folder, GOOD, GOOD | {"boxes": [[0, 0, 9, 9]]} | change)
    for rules in (RULES, LAZY):
        rows = read_rows(path, Rules(**(vars(rules) | {"skip_bad": True})))
        assert len(rows) + len(rows.skipped) == 2
        for row in rows:
            assert row.question.strip()
            assert all(answer.strip() for answer in row.answers)
            assert row.answers
        if rows.skipped:
            with pytest.raises(FoveateError, match="row 2"):
                read_rows(path, rules)
