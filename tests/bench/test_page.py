"""The results page says what the JSON files say, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foveate.bench.measure import measure
from foveate.bench.page import write_page
from foveate.bench.report import report, write_json
from foveate.bench.tables import TABLES
from foveate.files.atomic import replacing, write_text
from foveate.specs.settings import grid
from tests.tiny import make_tiny

FACTS = {
    "processor": "P", "cores": 2, "threads": 1, "dtype": "float32", "attention": "sdpa", "torch": "1", "foveate": "3",
    "transformers": "2", "measured": "now", "load_average": 5.0,
}  # fmt: skip
RUN = {"command": "foveate bench --x", "batch": 1, "new_tokens": 2, "prompt": "random", "repeats": 2, "seed": 0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny = make_tiny("llava")
    results = measure(tiny.model, tiny.batch([[3, (4, 4), 5]]), grid(["random"], [0.5]), 2, repeats=2, warmup=0)
    write_json(report(results, FACTS, RUN), tmp_path / "one.json")
    row = {
        "setting": "unpruned", "score": 0.5, "score_interval": [0.4, 0.6], "retention": 1.0, "kept_tokens": 10.0,
        "kept": 1.0, "prefill_ms": 3.25, "kv_bytes": 4000, "samples": 7, "by_type": {"read": {"score": 0.25}},
    }  # fmt: skip
    run = {"model": "m", "weights": "w", "data": "d"}
    found = {"format": "foveate.eval/1", "command": "foveate eval --y", "run": run, "metric": "exact_match", "batch": 1}
    found |= {"environment": FACTS | {"load_average": 0.5}, "skipped": ["row 3"], "results": [row]}
    (tmp_path / "two.json").write_text(json.dumps(found))
    return tmp_path


def test_numbers_commands_and_warnings_are_on_the_page(folder: Path) -> None:
    write_page(folder, folder / "docs" / "page.md", ["one", "two"])
    page = (folder / "docs" / "page.md").read_text()
    bench, evaluation = page.split("## two")
    for row in json.loads((folder / "one.json").read_text())["results"]:
        for shown in TABLES:
            assert "| " + " | ".join(shown.line(row)) + " |" in bench
    assert "```bash\nfoveate bench --x\n```\n" in bench
    assert "other work ran beside this" in bench
    assert "```bash\nfoveate eval --y\n```\n" in evaluation
    assert "| unpruned | 50.0% (40.0%-60.0%) | 100.0% | 10.0 | 100.0% | 3.25 | 4.0 |" in evaluation
    assert "7 samples, 1 skipped" in evaluation
    assert "| unpruned | 25% |" in evaluation
    assert "not overcommitted" in evaluation
    assert "![" not in page  # no picture without its file


def test_a_picture_beside_its_numbers_is_shown(folder: Path) -> None:
    (folder / "one.png").touch()
    write_page(folder, folder / "docs" / "page.md", ["one"])
    assert "![one](../one.png)" in (folder / "docs" / "page.md").read_text()


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def interrupted() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
