"""Workers and batches of similar length change how fast a run goes, and nothing that depends on luck."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from foveate.data.reading import read_rows
from foveate.data.rows import Rules
from foveate.training.glimpse.run import GlimpseSettings, train
from foveate.training.loading import LengthBuckets, default_workers, extents

from .runs import FAST


@given(st.lists(st.integers(1, 500), min_size=8, max_size=80), st.integers(1, 4), st.integers(0, 3))
def test_buckets_hold_every_row_once(lengths: list[int], size: int, seed: int) -> None:
    buckets = LengthBuckets(lengths, size, seed)
    assert sorted(buckets) == list(range(len(lengths))) == list(range(len(buckets)))
    assert list(buckets) == list(LengthBuckets(lengths, size, seed))


def test_batches_are_of_similar_length_and_epochs_differ() -> None:
    lengths = torch.randint(1, 1000, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    buckets = LengthBuckets(lengths, 8, 0)
    first = list(buckets)

    def wasted(order: list[int]) -> int:
        batches = [[lengths[i] for i in order[start : start + 8]] for start in range(0, 400, 8)]
        return sum(8 * max(batch) - sum(batch) for batch in batches)

    assert wasted(first) < wasted(list(range(400))) / 4
    buckets.set_epoch(1)
    assert list(buckets) != first


def of_two_sizes(settings: GlimpseSettings, folder: Path) -> str:
    """The table with every other image larger."""
    shutil.copytree(Path(settings.data).parent, folder)
    for number in range(0, 10, 2):
        Image.open(folder / f"{number}.png").resize((224, 280)).save(folder / f"{number}.png")
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "data.jsonl")


def test_a_run_goes_on_in_the_same_order(settings: GlimpseSettings, tmp_path: Path) -> None:
    """Resumed in its second epoch, with workers and without."""
    data = of_two_sizes(settings, tmp_path / "data")
    known = extents(read_rows(data, Rules()))
    assert known is not None
    assert known[0] > known[1]
    run = replace(settings, data=data, arguments=FAST | {"max_steps": 9, "save_steps": 7, "save_total_limit": 5})
    train(run)
    other = replace(run, out=tmp_path / "other", resume=True)
    shutil.copytree(run.out / "checkpoint-7", other.out / "checkpoint-7")
    shutil.copy(run.out / "run.json", other.out)
    train(replace(other, arguments=run.arguments | {"dataloader_num_workers": 2}))
    one, two = (load_file(folder / "model.safetensors") for folder in (run.out, other.out))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_scenes_have_no_lengths_before_they_are_rendered() -> None:
    assert extents(read_rows("scenes:val", Rules(), limit=3)) is None


def test_workers_are_left_to_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.training.loading.os.sched_getaffinity", lambda _: range(16), raising=False)
    assert default_workers() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert default_workers() == 1
    monkeypatch.setattr("foveate.training.loading.multiprocessing.get_start_method", lambda: "spawn")
    assert default_workers() == 0
