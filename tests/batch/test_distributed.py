"""The same parts by Ray actors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra `ray`")

from foveate import scenes
from tests.batch.test_batch import records
from tests.cli.run import foveate

KILLS = int(os.environ.get("FOVEATE_BATCH_KILLS", "3"))
ROWS = 4 * KILLS + 8


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


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_on_a_cluster_lose_and_repeat_nothing(tmp_path: Path) -> None:
    lines = []
    for index, sample in enumerate(scenes.load("test", ROWS)):
        sample.images[0].save(tmp_path / f"{index}.png")
        lines.append({"image": f"{index}.png", "question": sample.question})
    table = tmp_path / "rows.jsonl"
    table.write_text("\n".join(map(json.dumps, lines)))
    command = [sys.executable, "-m", "tests.batch.killed_on_ray", str(table), str(tmp_path / "out"), str(KILLS), "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr
    drivers, actors = map(int, done.stdout.splitlines()[-1].split())
    print(f"{drivers} kills of a driver, {actors} of an actor")
    assert drivers + actors > 0
    assert [row["row"] for row in records(tmp_path / "out")] == list(range(1, ROWS + 1))
    assert not list((tmp_path / "out").glob(".part-*"))
    settings = ("--keep", "1/5", "--batch", "2", "--part", "2", "--max-new-tokens", "6", "--device", "cpu")
    assert foveate("batch", table, "--out", tmp_path / "alone", *settings).returncode == 0
    assert records(tmp_path / "out") == records(tmp_path / "alone")


def test_options_of_ray_need_it(tmp_path: Path) -> None:
    done = foveate("batch", tmp_path, "--out", tmp_path / "out", "--actors", "3", "--prompt", "Hm?")
    assert done.returncode == 1
    assert "--actors: only for --ray" in done.stderr
