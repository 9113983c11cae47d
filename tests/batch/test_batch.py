"""Batches: every row once, whatever happens; what cannot be answered is an error of its row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from foveate import scenes
from foveate.batch import answering
from foveate.batch.job import BatchJob, run
from foveate.batch.parts import BatchError, BatchFolder
from foveate.errors import ConfigurationError, DataError
from foveate.inference.answer import Asker
from foveate.specs.settings import one_setting
from foveate.zoo import DEFAULT
from tests.batch.killed import job as make_job
from tests.cli.run import foveate

KILLS = int(os.environ.get("FOVEATE_BATCH_KILLS", "6"))


@pytest.fixture(scope="module")
def asker() -> Asker:
    return Asker.load(DEFAULT, 6, device="cpu")


@pytest.fixture(autouse=True)
def _loaded(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs take the loaded model instead of loading one each."""
    monkeypatch.setattr(BatchJob, "load", lambda self: asker)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty questions about scenes, as JSON lines."""
    folder = tmp_path_factory.mktemp("table")
    lines = []
    for index, sample in enumerate(scenes.load("test", 60)):
        sample.images[0].save(folder / f"{index}.png")
        lines.append(json.dumps({"image": f"{index}.png", "question": sample.question}))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "rows.jsonl"


def records(out: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(out.glob("part-*.parquet")) for row in pq.read_table(file).to_pylist()]


def test_kills_lose_and_repeat_nothing(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tests.batch.killed", str(table), str(out), str(KILLS), "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    print(f"{done.stdout.strip()} of {KILLS} kills met a running batch")
    assert int(done.stdout) >= 1, "no kill met a running batch"
    assert [row["row"] for row in records(out)] == list(range(1, 61))
    assert not list(out.glob(".part-*"))
    whole = run(make_job(table, tmp_path / "whole"))
    assert whole.computed == 60
    assert records(out) == records(tmp_path / "whole")


def test_answers_are_those_of_the_asker(asker: Asker, table: Path, tmp_path: Path) -> None:
    job = replace(make_job(table, tmp_path), limit=7)
    run(job)
    for row, record in zip(scenes.load("test", 7), records(tmp_path), strict=True):
        alone = asker.answer(asker.questions([(row.images, row.question)]), job.setting.make())[0]
        assert (record["answer"], record["stop"], record["prompt"]) == (alone.text, alone.stop, row.question)
        assert record["visual_tokens"] == alone.visual_tokens
        assert record["kept_tokens"] == pytest.approx(alone.kept_tokens)


def test_like_sizes_share_a_batch(asker: Asker, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []

    def note(one: Asker, rows: Any) -> Any:
        seen.append([row.load_images()[0].size[0] * row.load_images()[0].size[1] for row, _ in rows])
        return prepare(one, rows)

    prepare = answering.prepare
    monkeypatch.setattr(answering, "prepare", note)
    run(replace(make_job(table, tmp_path), limit=20, part=20))
    areas = [area for batch in seen for area in batch]
    assert areas == sorted(areas, reverse=True)
    assert len(set(areas)) > 1
    assert [row["row"] for row in records(tmp_path)] == list(range(1, 21))


def hostile(folder: Path) -> tuple[list[Any], int]:
    """Lines of which only some can be answered, and how many."""
    Image.new("RGB", (64, 64), "red").save(folder / "good.png")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:60])
    (folder / "empty.png").touch()
    (folder / "page.ps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    Image.new("1", (20000, 20000)).save(folder / "bomb.png")
    Image.new("RGB", (4000, 4), "red").save(folder / "strip.png")
    good = {"image": "good.png", "question": "What is it?"}
    lines = [
        good,
        *({**good, "image": name} for name in ("cut.png", "empty.png", "page.ps", "bomb.png", "strip.png")),
        *(
            {**good, "image": name}
            for name in ("nothing.png", ".", "http://127.0.0.1/x.png", "data:image/png;base64,!")
        ),
        *({**good, "question": question} for question in ("", "longer than the model reads " * 2000, 3)),
        {**good, "question": "<|image_pad|>"},
        {**good, "question": "half \ud800 a pair"},
        {"question": "no image"},
        {**good, "image": ["good.png", None]},
        [1, 2],
        "text",
        {**good, "images": ["good.png", "good.png"]},
    ]
    return lines, 2


def test_hostile_rows_are_errors_of_theirs(tmp_path: Path) -> None:
    lines, good = hostile(tmp_path)
    text = [json.dumps(line) for line in lines] + ["{no json", '{"image": "good.png", "question": "last"}']
    (tmp_path / "rows.jsonl").write_text("\n\n".join(text) + "\n")
    job = replace(make_job(tmp_path / "rows.jsonl", tmp_path / "out"), part=100, batch=8)
    done = run(job)
    found = records(tmp_path / "out")
    assert [row["row"] for row in found] == [1 + 2 * place for place in range(len(text))]  # lines of the file
    assert all((row["answer"] is None) != (row["error"] is None) for row in found)
    assert [row["row"] for row in found if row["error"] is None] == [1, 2 * len(lines) - 1, 2 * len(text) - 1]
    assert done.errors == len(text) - good - 1
    assert all(len(row["error"]) > 10 for row in found if row["error"])


def test_errors_can_be_tried_again(table: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(7):
        Image.new("RGB", (64, 64 + 28 * number), "red").save(folder / f"{number}.png")
    (folder / "6.png").write_bytes(b"not yet")
    job = replace(make_job(folder, tmp_path / "out"), prompt="What is it?", part=2)
    assert run(job).errors == 1
    before = (tmp_path / "out" / "part-000000.parquet").stat().st_mtime_ns
    (folder / "6.png").write_bytes(b"not y:t")  # of the same size: the manifest is the same
    again = run(job)
    assert (again.computed, again.errors) == (0, 1)
    assert run(job, retry_errors=True).computed == 1
    assert (tmp_path / "out" / "part-000000.parquet").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prompt": "{question} Be short."}, "prompt"),
        ({"setting": one_setting("vitcop", "1/4")}, "method"),
        ({"max_new_tokens": 9}, "max_new_tokens"),
        ({"limit": 10}, "rows"),
        ({"batch": 2}, "batch"),
        ({"part": 7}, "part"),
    ],
)
def test_other_settings_are_refused(table: Path, tmp_path: Path, change: dict[str, Any], named: str) -> None:
    job = replace(make_job(table, tmp_path), limit=5)
    run(job)
    with pytest.raises(BatchError, match=f"other settings .*{named}: .* there, .* now"):
        run(replace(job, **change))
    assert len(records(tmp_path)) == 5


def test_an_edited_manifest_is_refused(table: Path, tmp_path: Path) -> None:
    edited = table.with_name("edited.jsonl")
    edited.write_bytes(table.read_bytes())
    run(replace(make_job(edited, tmp_path), limit=5))
    edited.write_text(table.read_text().replace("What", "Which", 1))
    with pytest.raises(BatchError, match="manifest: "):
        run(replace(make_job(edited, tmp_path), limit=5))


def test_parts_of_others_and_damaged_ones_are_told(table: Path, tmp_path: Path) -> None:
    job = replace(make_job(table, tmp_path / "a"), limit=10)
    run(job)
    run(replace(job, out=tmp_path / "b", prompt="Say: {question}"))
    part = tmp_path / "a" / "part-000001.parquet"
    part.write_bytes((tmp_path / "b" / part.name).read_bytes())
    with pytest.raises(BatchError, match=r"part-000001\.parquet does not belong"):
        run(job)
    part.write_bytes(b"PAR1")
    with pytest.raises(BatchError, match=r"part-000001\.parquet is damaged"):
        run(job)
    part.unlink()
    assert run(job).computed == 5
    (tmp_path / "a" / "batch.json").unlink()
    with pytest.raises(BatchError, match=r"parts but no batch\.json"):
        run(job)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    parts = BatchFolder(tmp_path, {"a": 1}, 3, 2)
    with parts.held(), pytest.raises(BatchError, match="Another process"), parts.held():
        pass


@pytest.mark.parametrize(
    ("content", "prompt", "message"),
    [
        ("", "Hm?", "has no row"),
        ('{"picture": "a.png", "question": "x"}', "Hm?", "there is no image.*picture"),
        ('{"image": "a.png"}', "{question}", "no column `question`"),
        ('{"image": "a.png"}', " ", "prompt is empty"),
    ],
)
def test_wrong_manifests_are_refused_before_anything(tmp_path: Path, content: str, prompt: str, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        run(replace(make_job(tmp_path / "rows.jsonl", tmp_path / "out"), prompt=prompt))
    assert not (tmp_path / "out").exists()


def test_folders_without_pictures_or_prompt(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pictures or videos in it"):
        run(replace(make_job(tmp_path, tmp_path / "out"), prompt="Hm?"))
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="give one with --prompt"):
        run(make_job(tmp_path, tmp_path / "out"))


def failing(error: Callable[[], Exception], below: int) -> Any:
    """An `Asker.answer` that fails on batches of more than `below` rows."""
    answer = Asker.answer

    def call(self: Asker, inputs: Any, method: Any = None, **options: Any) -> Any:
        if inputs["input_ids"].shape[0] > below:
            raise error()
        return answer(self, inputs, method, **options)

    return call


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    return lambda error, below: monkeypatch.setattr(Asker, "answer", failing(error, below))


def test_too_large_batches_are_halved(table: Path, tmp_path: Path, fails: Callable[..., None]) -> None:
    fails(lambda: torch.OutOfMemoryError("full"), 1)
    assert run(replace(make_job(table, tmp_path), limit=5)).errors == 0


def test_a_model_that_answers_nothing_stops_the_batch(table: Path, tmp_path: Path, fails: Callable[..., None]) -> None:
    fails(lambda: ValueError("broken"), 0)
    with pytest.raises(BatchError, match="No row of rows 1-5 was answered: ValueError: broken"):
        run(replace(make_job(table, tmp_path), limit=10))
    assert not records(tmp_path)


def test_faults_of_the_settings_stop_the_batch(table: Path, tmp_path: Path, fails: Callable[..., None]) -> None:
    fails(lambda: ConfigurationError("no such layer"), 0)
    with pytest.raises(ConfigurationError):
        run(make_job(table, tmp_path))


def test_the_command_reads_parquet_and_merges(table: Path, tmp_path: Path) -> None:
    import datasets

    lines = [json.loads(line) for line in table.read_text().splitlines()[:9]]
    given = [{**line, "image": {"bytes": (table.parent / line["image"]).read_bytes()}} for line in lines]
    datasets.Dataset.from_list(given).to_parquet(str(tmp_path / "rows.parquet"))
    command = ("batch", tmp_path / "rows.parquet", "--out", tmp_path / "out", "--keep", "1/5", "--part", "4")
    done = foveate(*command, "--merge")
    assert done.returncode == 0, done.stderr
    assert "9 rows, 9 of them computed now, 0 with an error" in done.stdout
    merged = pq.read_table(tmp_path / "out" / "answers.parquet").to_pylist()
    assert merged == records(tmp_path / "out")
    assert [row["row"] for row in merged] == list(range(1, 10))
    assert "0 of them computed now" in foveate(*command).stdout
    other = foveate(*command, "--prompt", "Please: {question}")
    assert other.returncode == 1
    assert "other settings (prompt:" in other.stderr


def test_an_incomplete_batch_is_not_merged(table: Path, tmp_path: Path) -> None:
    done = run(replace(make_job(table, tmp_path), limit=10))
    done.parts.path(1).unlink()
    with pytest.raises(BatchError, match="1 of 2 parts are missing"):
        done.parts.merge()
