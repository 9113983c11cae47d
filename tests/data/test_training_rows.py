"""Rows to train on: boxes, several images, and rows that stop the run or are skipped."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from foveate.data.reading import read_rows
from foveate.data.rows import Rules
from foveate.errors import DataError
from foveate.scenes.splits import load as load_scenes

WriteTable = Callable[..., Path]
SIZE = (56, 84)


@pytest.fixture
def table(tmp_path: Path) -> WriteTable:
    """Writes rows as JSON lines beside an image `a.png` of 56 x 84 pixels; rows are changes of a good one."""
    Image.new("RGB", SIZE, "red").save(tmp_path / "a.png")

    def write(*changes: dict, name: str = "data.jsonl") -> Path:
        good = {"image": "a.png", "question": "What?", "answer": "Red", "boxes": [[0, 0, 28, 28]]}
        path = tmp_path / name
        path.write_text("".join(json.dumps(good | change) + "\n" for change in changes))
        return path

    return write


def test_pixel_boxes_are_normalised(table: WriteTable) -> None:
    example = read_rows(table({}), Rules())[0]
    assert example.boxes == (((0.0, 0.0, 0.5, 1 / 3),),)
    assert (example.number, example.question, example.answer) == (1, "What?", "Red")
    assert example.load_images()[0].size == SIZE


@pytest.mark.parametrize(
    ("box_format", "box"),
    [("normalized", [0, 0, 0.5, 0.25]), ("thousandths", [0, 0, 500, 250]), ("pixel_xywh", [0, 0, 28, 21])],
)
def test_box_formats(table: WriteTable, box_format: str, box: list) -> None:
    example = read_rows(table({"boxes": [box]}), Rules(box_format=box_format))[0]
    assert example.boxes == (((0.0, 0.0, 0.5, 0.25),),)


BAD_ROWS = {
    "image is missing": ({"image": "no.png"}, r"no image file at .*no\.png"),
    "image is broken": ({"image": "broken.png"}, r"broken\.png cannot be read"),
    "image is cut off": ({"image": "cut.png"}, r"cut\.png cannot be read"),
    "no image": ({"image": None}, "there is no image"),
    "box outside the image": ({"boxes": [[0, 0, 57, 10]]}, "outside the image"),
    "box is empty": ({"boxes": [[5, 5, 5, 9]]}, "is empty"),
    "box has three numbers": ({"boxes": [[1, 2, 3]]}, "four numbers"),
    "no boxes": ({"boxes": None}, "no evidence boxes"),
    "answer is empty": ({"answer": " "}, "answer is empty"),
    "question is missing": ({"question": None}, "question is empty"),
    "boxes in fractions": ({"boxes": [[0, 0, 0.5, 0.25]]}, "declared as pixel.*fractions"),
    "one box in fractions": ({"boxes": [[0, 0, 28, 28], [0, 0, 1, 1]]}, "declared as pixel.*fractions"),
    "box from right to left": ({"boxes": [[20, 0, 10, 9]]}, "is empty"),
    "box of text": ({"boxes": [["0", "0", "9", "9"]]}, "four numbers"),
    "box with a truth value": ({"boxes": [[0, 0, True, 9]]}, "four numbers"),
    "box that is not a number": ({"boxes": [[0, 0, float("nan"), 9]]}, "four numbers"),
    "boxes as text": ({"boxes": "[[0, 0, 9, 9]]"}, "not a list but str"),
    "boxes as a number": ({"boxes": 3}, "not a list but int"),
    "a box instead of boxes": ({"boxes": [0, 0, 9, 9]}, "four numbers"),
    "a box that is null": ({"boxes": [None]}, "four numbers"),
    "an extreme aspect ratio": ({"image": "ribbon.png"}, "200 times the other"),
    "one of two images is missing": ({"images": ["a.png", "no.png"]}, r"no image file at .*no\.png"),
    "no images": ({"image": None, "images": []}, "there is no image"),
    "an image is null": ({"images": ["a.png", None]}, "image 2 of 2 is neither"),
    "an address": ({"image": "https://example.org/a.png"}, "does not fetch"),
    "boxes of another number of images": ({"boxes": [[[0, 0, 9, 9]], [[0, 0, 9, 9]]]}, "given for 2 images"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_stop_the_run_or_are_skipped(table: WriteTable, tmp_path: Path, case: str) -> None:
    (tmp_path / "broken.png").write_bytes(b"not an image")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) - 30])
    Image.new("L", (600, 2)).save(tmp_path / "ribbon.png")
    change, complaint = BAD_ROWS[case]
    path = table(change)
    good = table({}, name="good.jsonl").read_text()
    path.write_text(good + path.read_text() + good)
    with pytest.raises(DataError, match=f"(?s)1 of 3 rows.*row 2: .*{complaint}"):
        read_rows(path, Rules())
    examples = read_rows(path, Rules(skip_bad=True))
    assert len(examples.skipped) == 1
    assert "row 2: " in examples.skipped[0]
    assert [e.number for e in examples] == [1, 3]


def test_nothing_usable(table: WriteTable) -> None:
    with pytest.raises(DataError, match="no usable row; the first problem: row 1"):
        read_rows(table({"answer": ""}), Rules(skip_bad=True))


def test_distillation_needs_neither_boxes_nor_answers(table: WriteTable) -> None:
    rules = Rules(needs_boxes=False, needs_answer=False)
    example = read_rows(table({"boxes": None, "answer": None}), rules)[0]
    assert example.boxes is None
    assert example.answer is None


def test_several_images(table: WriteTable) -> None:
    path = table({"image": None, "images": ["a.png", "a.png"], "boxes": [[[0, 0, 28, 42]], []]})
    example = read_rows(path, Rules())[0]
    assert example.boxes == (((0.0, 0.0, 0.5, 0.5),), ())
    assert len(example.load_images()) == 2


def test_parquet_with_embedded_images(tmp_path: Path, table: WriteTable) -> None:
    import datasets

    table()
    rows = {
        "image": [str(tmp_path / "a.png")] * 2,
        "question": ["Q"] * 2,
        "answer": ["A"] * 2,
        "boxes": [[[0, 0, 28, 28]]] * 2,
    }
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    dataset.to_parquet(tmp_path / "data.parquet")
    examples = read_rows(tmp_path / "data.parquet", Rules(), limit=1)
    assert len(examples) == 1
    assert examples[0].load_images()[0].getpixel((0, 0)) == (255, 0, 0)


def test_image_that_disappears_after_the_check(table: WriteTable, tmp_path: Path) -> None:
    example = read_rows(table({}), Rules())[0]
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match="row 1"):
        example.load_images()


def test_scenes() -> None:
    with pytest.raises(DataError, match="--limit"):
        read_rows("scenes", Rules())
    examples = read_rows("scenes:multi", Rules(), limit=3)
    expected = load_scenes("multi", 3)
    for example, sample in zip(examples, expected, strict=True):
        assert (example.question, example.answer) == (sample.question, sample.answer)
        assert example.boxes is not None
        assert [bool(b) for b in example.boxes] == [
            bool(sample.boxes) and i == sample.asked for i in range(len(sample.images))
        ]


def test_scenes_are_numbered_from_where_they_start() -> None:
    rows = read_rows("scenes:val", Rules(), limit=5, start=3)
    assert [row.number for row in rows] == [4, 5, 6, 7, 8]
    assert [row.id for row in rows[2:4]] == rows.ids[2:4] == ["val:5", "val:6"]
