from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter

import pytest
from PIL import Image

from foveate import scenes
from foveate.errors import FoveateError
from foveate.scenes.export import export

PRINT_DIGESTS = """
import hashlib, json
from foveate import scenes
print(json.dumps({
    split: [
        hashlib.sha256(b"".join(i.tobytes() for i in s.images) + repr(s.record()).encode()).hexdigest()
        for s in scenes.load(split, n=9, start=27)
    ]
    for split in scenes.SPLITS
}))
"""


def digests():
    out = subprocess.run([sys.executable, "-c", PRINT_DIGESTS], capture_output=True, text=True, check=True)
    return json.loads(out.stdout)


def test_rendering_is_bit_identical_across_processes():
    first, second = digests(), digests()
    assert first == second
    every = [digest for split in first.values() for digest in split]
    assert len(set(every)) == len(every)


PINNED = {
    "train": "888b3dbedc426d50",
    "val": "79a7b3c9890cd09e",
    "test": "189875c12609a9a6",
    "hard": "f625ac66950d8e7d",
    "multi": "70cf99704ad41a52",
    "large": "27a27a325cb5ee05",
    "document": "d106c177915cfb0c",
    "dense": "15260f857f847837",
    "video": "112d329c1e09fdb9",
}


@pytest.mark.parametrize("split", scenes.SPLITS)
def test_splits_never_change(split):
    """Published accuracies are about these questions. Panels are left out: their place depends on Pillow's fonts."""
    told = []
    for sample in scenes.load(split, n=90):
        if split == "document":
            (scene,) = sample.scenes
            values = [(f.key, f.value) for f in scene.fields], [(c.row, c.key, c.value) for c in scene.cells]
            told.append((sample.question, sample.answer, sample.image.size, values))
        elif not any(scene.fields for scene in sample.scenes):
            shapes = [[(s.name, s.label, s.box) for s in scene.shapes] for scene in sample.scenes]
            told.append((sample.question, sample.answer, sample.boxes, shapes))
    assert len(told) >= 2
    assert hashlib.sha256(repr(told).encode()).hexdigest()[:16] == PINNED[split]


def test_order_of_rendering_does_not_matter():
    backwards = [scenes.load("test")[i].images[0].tobytes() for i in (5, 3, 4)]
    assert backwards == [scenes.load("test", 6)[i].images[0].tobytes() for i in (5, 3, 4)]


def test_splits_share_no_picture():
    pictures = {}
    for split in ("train", "val", "test"):
        for sample in scenes.load(split, n=120):
            digest = hashlib.sha256(sample.image.tobytes()).hexdigest()
            assert pictures.setdefault(digest, split) == split
    seeds = {split: {s.seed for s in scenes.load(split, n=20)} for split in scenes.SPLITS}
    assert len(set().union(*seeds.values())) == 20 * len(scenes.SPLITS)


def test_sizes_and_balance():
    for split in ("test", "hard"):
        some = list(scenes.load(split, n=90))
        assert Counter(s.type for s in some) == dict.fromkeys(scenes.TYPES, 10)
        for sample in some:
            assert all(side % 28 == 0 and 224 <= side <= 672 for side in sample.image.size)
    assert len({s.image.size for s in scenes.load("test", n=90)}) >= 4


def test_little_of_a_large_image_or_a_page_is_evidence():
    """What pruning is for; `test` is far from it."""
    found = {
        split: scenes.shares(scenes.load(split, n=45)) for split in ("test", "large", "document", "dense", "video")
    }
    assert found["large"].tokens == 24 * 24
    assert found["video"].tokens == 9 * 8 * 8
    assert found["large"].evidence < 0.5 * found["test"].evidence
    assert found["dense"].foreground > 3 * found["large"].foreground
    assert all(found[split].evidence < 0.06 for split in ("large", "document", "video"))
    assert all(0 < each.evidence < each.foreground < 0.6 for each in found.values())


def test_lengths_and_slices():
    assert len(scenes.load("test")) == len(scenes.load("val")) == 1000
    assert len(scenes.load("train")) > 10**9
    part = scenes.load("val", n=10, start=990)
    assert part[-1].seed == scenes.load("val")[999].seed == part[4:][5].seed


@pytest.mark.parametrize("arguments", [("tset",), ("test", 1001), ("test", 5, 998), ("val", 5, -1)])
def test_wrong_splits_and_ranges_are_refused(arguments):
    with pytest.raises(FoveateError, match="split"):
        scenes.load(*arguments)


def test_export_writes_images_lines_and_a_sheet(tmp_path):
    out = tmp_path / "scenes"
    ticks = []
    export(scenes.load("multi", n=3), out, lambda: ticks.append(1))
    export(scenes.load("test", n=4), out)  # a second export replaces the first
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert len(ticks) == 3
    assert len(lines) == 4
    for line, sample in zip(lines, scenes.load("test", n=4), strict=True):
        assert Image.open(out / line["image"]).tobytes() == sample.image.tobytes()
        assert (line["question"], line["answer"]) == (sample.question, sample.answer)
    assert Image.open(out / "sheet.png").size[0] > 240
    assert not (tmp_path / "scenes.partial").exists()


@pytest.mark.parametrize("beside_an_export", [False, True])
def test_export_never_touches_a_folder_of_other_things(tmp_path, beside_an_export):
    out = tmp_path / "work"
    if beside_an_export:
        export(scenes.load("test", n=1), out)
    out.mkdir(exist_ok=True)
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(FoveateError, match="other files"):
        export(scenes.load("test", n=1), out)
    assert (out / "thesis.tex").read_text() == "years of work"


def test_dataset_has_the_samples():
    pytest.importorskip("datasets")
    rows = scenes.to_dataset("test", n=3)
    assert rows["question"] == [s.question for s in scenes.load("test", n=3)]
    assert rows[1]["images"][0].tobytes() == scenes.load("test", n=3)[1].image.tobytes()


def test_the_command(tmp_path):
    from typer.testing import CliRunner

    from foveate.cli.scenes import app

    done = CliRunner().invoke(app, ["render", "--split", "val", "--n", "2", "--out", str(tmp_path / "v")])
    assert done.exit_code == 0, done.output
    assert len((tmp_path / "v" / "samples.jsonl").read_text().splitlines()) == 2
    told = CliRunner().invoke(app, ["shares", "video", "large", "--n", "3"])
    assert told.exit_code == 0, told.output
    assert [line.split(" tokens")[0] for line in told.output.splitlines()] == ["video: 576", "large: 576"]
