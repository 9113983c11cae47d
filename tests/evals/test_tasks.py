"""Reading data: scenes, JSON lines and parquet, and what is said of bad rows."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from foveate.data.tasks import DataError, load
from foveate.scenes import load as scenes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    Image.new("RGB", (30, 40), "blue").save(tmp_path / "b.png")
    return tmp_path


def lines(folder: Path, *rows: object) -> str:
    path = folder / "data.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_scenes_are_the_built_in_ones() -> None:
    task = load("scenes:hard", limit=3)
    assert task.ids == ["hard:0", "hard:1", "hard:2"]
    one, other = task.samples[1], scenes("hard", 3)[1]
    assert (one.question, one.answers, one.type) == (other.question, (other.answer,), other.type)
    assert one.images()[0].tobytes() == other.image.tobytes()
    assert [s.id for s in task.samples[1:]] == ["hard:1", "hard:2"]
    assert len(load("scenes").ids) == 1000


def test_json_lines(folder: Path) -> None:
    data = lines(
        folder,
        {"image": "a.png", "question": "Which?", "answer": "red", "type": "colour"},
        "",
        {"images": ["a.png", "b.png"], "question": "How many?", "answers": ["2", "two"]},
    )
    task = load(data, prompt="{question} Answer briefly.")
    first, second = task.samples
    assert first.question == "Which? Answer briefly."
    assert (first.answers, first.type) == (("red",), "colour")
    assert second.answers == ("2", "two")
    assert [image.size for image in second.images()] == [(40, 30), (30, 40)]
    assert [s.id.split("-")[0] for s in task.samples] == ["1", "3"]
    assert len(load(data, limit=1).samples) == 1


def test_ids_change_with_the_row(folder: Path) -> None:
    row = {"image": "a.png", "question": "Which?", "answer": "red"}
    before = load(lines(folder, row)).ids
    assert load(lines(folder, row)).ids == before
    assert load(lines(folder, row | {"answer": "blue"})).ids != before


def test_parquet_with_bytes_and_with_paths(folder: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    data = (folder / "a.png").read_bytes()
    rows = [
        {"image": {"bytes": data, "path": None}, "question": "q", "answers": ["x", "y"]},
        {"image": {"bytes": None, "path": "b.png"}, "question": "q", "answers": ["z"]},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "d.parquet")
    task = load(str(folder / "d.parquet"))
    assert [s.images()[0].size for s in task.samples] == [(40, 30), (30, 40)]
    assert task.samples[0].answers == ("x", "y")
    (folder / "e.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"e\.parquet cannot be read"):
        load(str(folder / "e.parquet"))


GOOD = {"image": "a.png", "question": "q", "answer": "x"}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([GOOD, {"image": "a.png", "question": "q"}], r"row 2: no column 'answers' or 'answer'; there are image"),
        ([GOOD, {"question": "q", "answer": "x"}], r"row 2: no column 'images' or 'image'"),
        ([{"image": "a.png", "answer": "x"}], r"row 1: no column 'question'"),
        ([GOOD | {"question": " "}], r"row 1: the question is empty"),
        ([GOOD | {"answers": []}], r"row 1: there is no answer"),
        ([GOOD, "{broken"], r"line 2 is no JSON"),
        ([GOOD, "[1]"], r"line 2 is no JSON object but list"),
        ([""], r"has no rows"),
    ],
)
def test_bad_rows_are_named(folder: Path, rows: list, words: str) -> None:
    with pytest.raises(DataError, match=words):
        load(lines(folder, *rows))


@pytest.mark.parametrize("broken", ["missing.png", "empty.png", "text.png"])
def test_unreadable_images_name_the_row(folder: Path, broken: str) -> None:
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no picture")
    sample = load(lines(folder, GOOD, GOOD | {"image": broken})).samples[1]
    with pytest.raises(DataError, match=rf"row 2.*{broken}"):
        sample.images()


def test_broken_bytes(folder: Path) -> None:
    from foveate.data.tasks import _image
    from foveate.errors import ImageError

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    assert _image(folder, buffer.getvalue()).size == (8, 8)
    for data in (b"", b"xx", buffer.getvalue()[:40]):
        with pytest.raises(ImageError, match="cannot be read"):
            _image(folder, data)
    with pytest.raises(ImageError, match="path or bytes, not int"):
        _image(folder, 3)


@pytest.mark.parametrize(("data", "words"), [("x.csv", "neither"), ("missing.jsonl", "no file"), ("scenes:x", "'x'")])
def test_unknown_data(data: str, words: str) -> None:
    from foveate.errors import FoveateError

    with pytest.raises(FoveateError, match=words):
        load(data)


def test_a_prompt_without_the_question() -> None:
    with pytest.raises(DataError, match="no {question}"):
        load("scenes", 1, "What?")
