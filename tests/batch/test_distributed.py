"""The same parts by Ray actors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra `ray`")

from foveate import scenes
from tests.batch.test_batch import records
from tests.cli.run import foveate


@pytest.mark.slow
def test_ray_takes_over_where_one_process_stopped(tmp_path: Path) -> None:
    lines = []
    for index, sample in enumerate(scenes.load("test", 10)):
        sample.images[0].save(tmp_path / f"{index}.png")
        lines.append({"image": f"{index}.png", "question": sample.question})
    lines[4]["image"] = "gone.png"
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    out, alone = tmp_path / "out", tmp_path / "alone"
    command = ("batch", tmp_path / "rows.jsonl", "--keep", "1/5", "--part", "3", "--device", "cpu")
    assert foveate(*command, "--out", alone).returncode == 0
    shutil.copytree(alone, out)
    for part in (0, 2, 3):
        (out / f"part-{part:06d}.parquet").unlink()
    kept = (out / "part-000001.parquet").stat().st_mtime_ns
    done = foveate(*command, "--out", out, "--ray", "--cpus", "0.5")
    assert done.returncode == 0, done.stderr
    assert "10 rows, 7 of them computed now, 1 with an error" in done.stdout
    assert records(out) == records(alone)
    assert (out / "part-000001.parquet").stat().st_mtime_ns == kept


def test_options_of_ray_need_it(tmp_path: Path) -> None:
    done = foveate("batch", tmp_path, "--out", tmp_path / "out", "--actors", "3", "--prompt", "Hm?")
    assert done.returncode == 1
    assert "are for --ray" in done.stderr
