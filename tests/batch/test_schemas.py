"""Answers of a batch that follow a JSON schema."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from foveate import scenes
from tests.cli.run import foveate


def test_every_answer_follows_the_schema(tmp_path: Path) -> None:
    pytest.importorskip("llguidance", reason="needs the extra `json`")
    (tmp_path / "pictures").mkdir()
    for index, sample in enumerate(scenes.load("test", 5)):
        sample.images[0].save(tmp_path / "pictures" / f"{index}.png")
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}}, '
                      '"required": ["n"], "additionalProperties": false}')  # fmt: skip
    command = ("batch", tmp_path / "pictures", "--out", tmp_path / "out", "--prompt", "How many?", "--keep", "1/5")
    done = foveate(*command, "--schema", schema, "--part", "3", "--merge", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    answers = pq.read_table(tmp_path / "out" / "answers.parquet").to_pylist()
    assert [set(json.loads(row["answer"])) for row in answers] == [{"n"}] * 5
    assert all(json.loads(row["answer"])["n"] in range(10) for row in answers)
    other = foveate(*command, "--part", "3")
    assert other.returncode == 1
    assert "schema:" in other.stderr


@pytest.mark.parametrize(("text", "said"), [("{", "no JSON"), ("[]", "no JSON object"), (None, "cannot be read")])
def test_no_schema(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "schema.json").write_text(text)
    done = foveate("batch", tmp_path, "--out", tmp_path / "o", "--prompt", "x", "--schema", tmp_path / "schema.json")
    assert done.returncode == 1
    assert said in done.stderr
