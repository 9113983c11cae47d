"""Questions from rows: what is asked, and rows that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from foveate.errors import DataError, FoveateError
from foveate.evals.evaluate import Plan, evaluate
from foveate.evals.questions import load, prepare
from foveate.inference.answer import Asker
from foveate.scenes import load as scenes
from foveate.specs.settings import grid
from foveate.zoo import DEFAULT

LLAVA = "foveate/scenes-llava"
GOOD = {"image": "a.png", "question": "Which colour?", "answer": "red"}


def write(folder: Path, *rows: dict | str) -> str:
    Image.new("RGB", (112, 112), "red").save(folder / "a.png")
    Image.new("RGB", (2010, 10), "red").save(folder / "ribbon.png")
    path = folder / "data.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module", params=[DEFAULT, LLAVA])
def asker(request: pytest.FixtureRequest) -> Asker:
    return Asker.load(request.param)


def test_scenes_are_the_built_in_ones() -> None:
    task = load("scenes:hard", limit=3)
    assert task.ids == ["hard:0", "hard:1", "hard:2"]
    one, other = task[1], scenes("hard", 3)[1]
    assert (one.question, one.answers, one.type) == (other.question, (other.answer,), other.type)
    assert one.load_images()[0].tobytes() == other.image.tobytes()
    assert [row.id for row in task[1:]] == ["hard:1", "hard:2"]
    assert (load("scenes").name, len(load("scenes").ids)) == ("scenes:test", 1000)


def test_the_prompt_is_what_is_asked(tmp_path: Path) -> None:
    data = write(tmp_path, GOOD, GOOD | {"question": "How many?"})
    task = load(data, prompt="{question} Answer briefly.")
    assert [row.question for row in task] == ["Which colour? Answer briefly.", "How many? Answer briefly."]
    assert task.ids == load(data).ids
    assert len(load(data, limit=1)) == 1
    with pytest.raises(DataError, match="no {question}"):
        load(data, 1, "What?")


@pytest.mark.parametrize(("data", "words"), [("x.csv", "ends in"), ("no.jsonl", "no file"), ("scenes:x", "'x'")])
def test_unknown_data(data: str, words: str) -> None:
    with pytest.raises(FoveateError, match=words):
        load(data)


def test_a_placeholder_in_a_question_is_a_bad_row(asker: Asker, tmp_path: Path) -> None:
    mark = asker.processor.image_token
    rows = load(write(tmp_path, GOOD, GOOD | {"question": f"{mark}\nWhich colour?"}, GOOD))
    with pytest.raises(DataError, match=r"data\.jsonl row 2: the question holds .*--skip-bad"):
        prepare(asker, rows, False, [])
    skipped: list[str] = []
    good, inputs = prepare(asker, rows, True, skipped)
    assert [row.number for row in good] == [1, 3]
    assert len(inputs["input_ids"]) == 2
    assert len(skipped) == 1


def test_an_extreme_aspect_ratio_is_a_bad_row(asker: Asker, tmp_path: Path) -> None:
    rows = load(write(tmp_path, GOOD | {"image": "ribbon.png"}, GOOD))
    with pytest.raises(DataError, match=r"row 1: .*ribbon\.png is 2010 x 10 pixels.*--skip-bad"):
        prepare(asker, rows, False, [])
    assert [row.number for row in prepare(asker, rows, True, [])[0]] == [2]


@pytest.mark.parametrize("error", [ValueError, IndexError, TypeError, ZeroDivisionError])
def test_what_the_processor_refuses_is_a_bad_row(
    asker: Asker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """A stricter processor than those of the models here: its refusal of one image must not stop a batch."""
    kind = type(asker.processor.image_processor)
    stock = kind.__call__

    def strict(self: Any, images: Any, *args: Any, **options: Any) -> Any:
        flat = [image for part in images for image in (part if isinstance(part, list) else [part])]
        if any(image.width > 100 * image.height for image in flat):
            raise error("absolute aspect ratio must be smaller than 100")
        return stock(self, images, *args, **options)

    monkeypatch.setattr(kind, "__call__", strict)
    data = write(tmp_path, GOOD, GOOD | {"image": "wide.png"}, GOOD)
    Image.new("RGB", (1500, 10)).save(tmp_path / "wide.png")
    with pytest.raises(DataError, match=r"row 2: .*cannot .*prepare.*aspect ratio.*--skip-bad"):
        prepare(asker, load(data), False, [])
    skipped: list[str] = []
    good, inputs = prepare(asker, load(data), True, skipped)
    assert [row.number for row in good] == [1, 3]
    _, expected = prepare(asker, load(write(tmp_path, GOOD, GOOD)), False, [])
    assert inputs.keys() == expected.keys()
    assert all(inputs[name].equal(expected[name]) for name in expected)
    assert "row 2" in skipped[0]


def test_errors_that_are_not_the_rows_are_raised(asker: Asker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*args: Any, **options: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(type(asker.processor.image_processor), "__call__", out_of_memory)
    with pytest.raises(MemoryError):
        prepare(asker, load(write(tmp_path, GOOD)), True, [])


def test_no_bad_row_stops_an_evaluation(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(b"\x89PNG")
    data = write(
        tmp_path, GOOD, '{"image": "a.png"', GOOD | {"question": "<|image_pad|>?"}, GOOD | {"image": "cut.png"},
        GOOD | {"images": [], "image": None}, GOOD | {"image": "ribbon.png"}, GOOD | {"answer": None}, GOOD,
    )  # fmt: skip
    with Path(data).open("ab") as file:
        file.write(json.dumps(GOOD | {"question": "größer?"}, ensure_ascii=False).encode("latin-1"))
    plan = Plan(DEFAULT, data, grid(["random"], [0.5]), tmp_path / "out", batch=4, skip_bad=True)
    found = evaluate(plan).found
    assert found["results"][0]["samples"] == 2
    rows = sorted(int(problem.split(" row ")[1].split(":")[0]) for problem in found["skipped"])
    assert rows == [2, 3, 4, 5, 6, 7, 9]
