"""Reading rows: every kind of table, and what is said of bad ones."""

from __future__ import annotations

import base64
import codecs
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from foveate.data.reading import read_rows
from foveate.data.rows import Row, Rows, Rules
from foveate.errors import DataError

RULES = Rules(needs_boxes=False)
LAZY = Rules(box_format=None, needs_boxes=False, opens_images=False)
GOOD: dict[str, Any] = {"image": "a.png", "question": "q", "answer": "x"}


def lines(folder: Path, *rows: object, name: str = "data.jsonl") -> str:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def encoded(folder: Path) -> bytes:
    return (folder / "a.png").read_bytes()


ROWS = [
    GOOD | {"image": "a.png", "answer": "red", "type": "colour"},
    {"image": "b.png", "question": "How many?", "answers": ["2", "two"]},
]


def as_json_lines(folder: Path) -> Path:
    return Path(lines(folder, *ROWS))


def as_json_lines_called_json(folder: Path) -> Path:
    return Path(lines(folder, *ROWS, name="data.json"))


def as_json_array(folder: Path) -> Path:
    (folder / "data.json").write_text(json.dumps(ROWS, indent=1))
    return folder / "data.json"


def as_parquet_with_paths(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rows = [{"image": {"bytes": None, "path": row["image"]}, **_columns(row)} for row in ROWS]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "data.parquet")
    return folder / "data.parquet"


def as_parquet_with_bytes(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rows = [{"image": (folder / row["image"]).read_bytes(), **_columns(row)} for row in ROWS]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "data.parquet")
    return folder / "data.parquet"


def as_dataset(folder: Path) -> Any:
    import datasets

    columns = [{"image": str(folder / row["image"]), **_columns(row)} for row in ROWS]
    return datasets.Dataset.from_list(columns).cast_column("image", datasets.Image())


def as_parquet_of_datasets(folder: Path) -> Path:
    as_dataset(folder).to_parquet(folder / "data.parquet")
    return folder / "data.parquet"


def as_saved_dataset(folder: Path) -> Path:
    as_dataset(folder).with_format("numpy").save_to_disk(folder / "saved")
    return folder / "saved"


def _columns(row: dict[str, Any]) -> dict[str, Any]:
    return {"question": row["question"], "answers": row.get("answers", [row.get("answer")]), "type": row.get("type")}


TABLES = [
    as_json_lines, as_json_lines_called_json, as_json_array, as_parquet_with_paths, as_parquet_with_bytes,
    as_parquet_of_datasets, as_saved_dataset,
]  # fmt: skip


@pytest.mark.parametrize("rules", [RULES, LAZY])
@pytest.mark.parametrize("write", TABLES)
def test_every_kind_of_table_holds_the_same_rows(folder: Path, write: Any, rules: Rules) -> None:
    path = write(folder)
    first, second = rows = read_rows(path, rules)
    assert (first.question, first.answers, first.type) == ("q", ("red",), "colour")
    assert (second.question, second.answers, second.type) == ("How many?", ("2", "two"), "")
    assert [row.load_images()[0].size for row in rows] == [(40, 30), (30, 40)]
    assert first.load_images()[0].getpixel((0, 0)) == (255, 0, 0)
    assert [row.number for row in rows] == [1, 2]
    assert (rows.name, rows.ids, rows.answered) == (path.name, [first.id, second.id], True)
    assert first.where == f"{path} row 1"
    assert read_rows(path, rules, limit=1, start=1).ids == [second.id]
    assert [row.id for row in rows[1:]] == rows[1:].ids == [second.id]


def test_a_line_is_called_by_its_number(folder: Path) -> None:
    assert [row.number for row in read_rows(lines(folder, GOOD, "", GOOD), RULES)] == [1, 3]


def test_ids_change_with_the_row(folder: Path) -> None:
    before = read_rows(lines(folder, GOOD), LAZY).ids
    assert read_rows(lines(folder, GOOD), LAZY).ids == before
    for change in ({"answer": "y"}, {"question": "p"}, {"image": "b.png"}):
        assert read_rows(lines(folder, GOOD | change), LAZY).ids != before


def test_images_in_data_uris(folder: Path) -> None:
    uri = "data:image/png;base64," + base64.b64encode(encoded(folder)).decode()
    (row,) = read_rows(lines(folder, {"images": [uri, "b.png"], "question": "q", "answer": "x"}), LAZY)
    assert [image.size for image in row.load_images()] == [(40, 30), (30, 40)]
    assert len(repr(row.images)) < 2000


def test_images_of_a_table_are_upright(folder: Path) -> None:
    """As paths they have been all along; as bytes in a table they lay on their side."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    stream, image = io.BytesIO(), Image.new("RGB", (8, 6))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(stream, "JPEG", exif=exif)
    parquet.write_table(pa.Table.from_pylist([GOOD | {"image": stream.getvalue()}]), folder / "d.parquet")
    assert read_rows(folder / "d.parquet", LAZY)[0].load_images()[0].size == (6, 8)
    assert read_rows(folder / "d.parquet", RULES)[0].sizes == ((6, 8),)


def test_an_empty_list_says_nothing_where_the_other_column_does(folder: Path) -> None:
    (row,) = read_rows(lines(folder, GOOD | {"images": [], "answers": []}), RULES)
    assert (len(row.images), row.answers) == (1, ("x",))


MARKED = {
    "utf-8 with a mark": codecs.BOM_UTF8 + '{"image": "a.png", "question": "größer?", "answer": "x"}'.encode(),
    "utf-16": '{"image": "a.png", "question": "größer?", "answer": "x"}'.encode("utf-16"),
    "utf-16, other byte order": codecs.BOM_UTF16_BE
    + '{"image": "a.png", "question": "größer?", "answer": "x"}'.encode("utf-16-be"),
    "utf-32": '{"image": "a.png", "question": "größer?", "answer": "x"}'.encode("utf-32"),
}


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
@pytest.mark.parametrize("case", MARKED)
def test_byte_order_marks_are_read(folder: Path, case: str, suffix: str) -> None:
    (folder / f"data.{suffix}").write_bytes(MARKED[case])
    (row,) = read_rows(folder / f"data.{suffix}", RULES)
    assert (row.number, row.question) == (1, "größer?")


def test_a_marked_array(folder: Path) -> None:
    (folder / "data.json").write_bytes(codecs.BOM_UTF8 + json.dumps([GOOD]).encode())
    assert len(read_rows(folder / "data.json", RULES)) == 1


def test_line_separators_inside_text_do_not_end_a_line(folder: Path) -> None:
    (folder / "data.jsonl").write_text(
        json.dumps(GOOD | {"question": "a\u2028b\u0085c"}, ensure_ascii=False) + "\r\n", encoding="utf-8", newline=""
    )
    assert read_rows(folder / "data.jsonl", RULES)[0].question == "a\u2028b\u0085c"


def test_a_folder_of_several_splits_names_them(folder: Path) -> None:
    import datasets

    dataset = as_dataset(folder)
    datasets.DatasetDict({"train": dataset, "test": dataset}).save_to_disk(folder / "saved")
    with pytest.raises(DataError, match=r"several splits; name one: .*saved/test, .*saved/train"):
        read_rows(folder / "saved", RULES)
    assert len(read_rows(folder / "saved" / "test", RULES)) == 2


def test_broken_bytes_name_the_row(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rows = [GOOD | {"image": encoded(folder)}, GOOD | {"image": encoded(folder)[:40]}]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "d.parquet")
    with pytest.raises(DataError, match=r"(?s)1 of 2 rows.*row 2: the image of 40 bytes cannot be read"):
        read_rows(folder / "d.parquet", RULES)
    with pytest.raises(DataError, match=r"d\.parquet row 2: image 1 of column image: .*cannot be read"):
        read_rows(folder / "d.parquet", LAZY)[1].load_images()


@pytest.mark.parametrize("broken", ["missing.png", "empty.png", "text.png"])
def test_an_image_that_is_opened_later_names_its_row(folder: Path, broken: str) -> None:
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no picture")
    row = read_rows(lines(folder, GOOD, GOOD | {"image": broken}), LAZY)[1]
    with pytest.raises(DataError, match=rf"data\.jsonl row 2: .*{broken}"):
        row.load_images()


def test_the_answer_to_train_on_is_what_most_people_gave() -> None:
    assert Row(1, (), "q", ("two", "2", "2")).answer == "2"
    assert Row(1, (), "q", ("two", "2")).answer == "two"
    assert Row(1, (), "q").answer is None


def test_what_is_asked(folder: Path) -> None:
    rows = read_rows(lines(folder, GOOD), LAZY)
    asked = Rows.of(rows.items, rows.name, prompt="{question} Briefly: {question}")
    assert asked[0].question == "q Briefly: q"
    assert asked[:1][0].question == "q Briefly: q"
    assert asked.ids == rows.ids
