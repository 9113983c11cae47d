"""The accuracy study: what it measures, its page, and going on after kill -9."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import accuracy
import accuracy_page
import accuracy_settings
import pytest

from foveate.core.view import ModelInfo
from foveate.data.rendered import Scenes
from foveate.data.rows import Row, Rows
from foveate.errors import DataError
from foveate.evals.store import Store
from foveate.inference.answer import Asker
from foveate.methods import registry
from foveate.zoo import DEFAULT
from tests.benchmarks.conftest import BENCHMARKS

LLAVA, QWEN = ModelInfo("llava", 10, 8, True, 5), ModelInfo("qwen2_5_vl", 10, 6, False, 4)
KEEPS = list(accuracy_settings.KEEPS)
N = 9


def settings(info: ModelInfo, study: str = "methods") -> tuple[list[accuracy_settings.Measured], dict[str, str]]:
    return accuracy_settings.measured(accuracy.STUDIES[study](info, KEEPS, 2), info)


# -- what is measured ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("info", [LLAVA, QWEN], ids=lambda info: info.family)
@pytest.mark.parametrize("study", list(accuracy.STUDIES))
def test_no_two_settings_share_their_answers(info: ModelInfo, study: str) -> None:
    made, _ = settings(info, study)
    assert len({setting.describe() for setting in made}) == len(made) > 15


@pytest.mark.parametrize("info", [LLAVA, QWEN], ids=lambda info: info.family)
def test_every_method_at_every_budget_is_measured_or_refused(info: ModelInfo) -> None:
    made, refused = settings(info)
    found = {(setting.kind, setting.keep) for setting in made}
    found |= {(name.split(", ")[0], name.split(", ")[-1]) for name in refused}
    wanted = set(registry()) - {"glimpse_prune", "compose", *accuracy_settings.FOR_VIDEOS} | {
        "fastervlm+fastv",
        "prumerge+",
    }
    assert found >= {(name, keep) for name in wanted for keep in KEEPS}


def test_published_is_another_configuration_than_default() -> None:
    made, _ = settings(LLAVA)
    modes = {(s.kind, s.mode): s.method for s in made if s.keep == "1/3" and s.method is not None}
    for name, fields in accuracy_settings.SWITCHES.items():
        for field, value in fields.items():
            assert getattr(modes[name, "published"], field) == value != getattr(modes[name, "default"], field)
    for name in accuracy_settings.RENUMBERED:
        assert (modes[name, "published"].positions, modes[name, "default"].positions) == ("contiguous", "original")
    qwen, _ = settings(QWEN)
    assert all(s.method.positions == "original" for s in qwen if s.method is not None)
    (vitcop,) = [s.method for s in qwen if s.kind == "vitcop" and s.mode == "published" and s.keep == "1/3"]
    assert (vitcop.official, vitcop.shallow) == (False, "key_norm")  # its code exists for LLaVA only, its choices here


def test_studies_share_the_answers_of_settings_that_both_have() -> None:
    shared = {s.describe() for s in settings(LLAVA)[0]} & {s.describe() for s in settings(LLAVA, "switches")[0]}
    assert sum("HiPrune" in key for key in shared) == 4  # default at four budgets; wrap alone is in one study only
    assert "unpruned" in shared


# -- how -----------------------------------------------------------------------------------------------------


def test_questions_come_by_size_of_their_images() -> None:
    sizes = [(8, 8), (4, 4), (8, 8), (4, 8)]
    rows = Rows.of([Row(i, (), "?", ("a",), id=str(i), sizes=(size,)) for i, size in enumerate(sizes)], "x")
    assert [[row.id for row in group] for group in accuracy.by_size(rows)] == [["1"], ["3"], ["0", "2"]]


def test_a_chunk_counts_when_every_setting_has_answered_it(tmp_path: Path) -> None:
    made = settings(QWEN)[0][:2]
    rows = Rows.of([Row(i, (), "?", ("a",), id=str(i)) for i in range(2 * accuracy.CHUNK + 1)], "x")
    with Store(tmp_path / "results.jsonl", {}) as store:
        for setting, end in zip(made, (len(rows), 2 * accuracy.CHUNK - 1), strict=True):
            store.append({"setting": setting.describe(), "sample": sample} for sample in rows.ids[:end])
        assert accuracy.complete(rows, made, store) == rows.ids[: accuracy.CHUNK]
        assert accuracy.complete(rows, made[:1], store) == rows.ids


def test_times_survive_a_torn_line(tmp_path: Path) -> None:
    times = tmp_path / "times.jsonl"
    assert accuracy.seconds_per_answer(times) == 0
    times.write_text('{"answers": 10, "cpu_s": 1.0}\n{"answers": 30, "cpu_s": 1.0}\n{"answers": 5, "cp')
    assert accuracy.seconds_per_answer(times) == pytest.approx(2 / 40)


def test_fewer_frames_are_evenly_spaced_and_shown_unpruned() -> None:
    made, _ = settings(QWEN, "video")
    few = {one.keep: one for one in made if one.kind == accuracy_settings.FEWER}
    assert {keep: one.frames for keep, one in few.items()} == {"1/3": 6, "2/9": 4, "1/9": 2}
    row = Scenes.load("video", 1)[0]
    (clip,) = accuracy.with_frames(row, 6).videos
    assert clip.indices == (0, 3, 6, 9, 12, 15)
    assert (clip.frames == row.videos[0].frames[::3]).all()
    assert (clip.total, clip.fps) == (18, 8.0)
    assert accuracy.with_frames(row, 0) is row
    assert few["1/3"].make() is None
    groups = dict(accuracy.by_frames(made))
    assert sum(map(len, groups.values())) == len(made)
    assert groups[6] == [few["1/3"]]


def test_a_video_of_fewer_frames_keeps_fewer_tokens(tmp_path: Path) -> None:
    asker = Asker.load(DEFAULT, 1)
    made = [one for one in settings(QWEN, "video")[0] if one.kind in ("unpruned", accuracy_settings.FEWER, "evs")]
    made = [one for one in made if one.keep in ("", "1/3")]
    rows = Rows.of(list(Scenes.load("video", 1)), "x")
    with Store(tmp_path / "results.jsonl", {}) as store:
        accuracy.answer(asker, rows, made, store, tmp_path / "times.jsonl", "x")
        whole, *others = accuracy.collect(store, [(s.describe(), s.name) for s in made], rows.ids, "exact_match")
    assert whole.records[0]["visual_tokens"] == 9 * 64
    assert [accuracy.kept(one, whole) for one in others] == pytest.approx([1 / 3, 1 / 3])


# -- the page ------------------------------------------------------------------------------------------------


def report(rows: list[tuple[str, str, list[int]]], **changes: Any) -> dict[str, Any]:
    n = len(rows[0][2])
    base = {
        "run": {"model": "m", "weights": "w0", "data": "scenes:test"},
        "facts": {"foveate": "9.9"},
        "shares": {"tokens": 144.0, "foreground": 0.4, "evidence": 0.113},
        "n": n,
        "wanted": n,
        "refused": {"fastv, default, 1/9": "too little"},
        "seconds_per_answer": 0.05,
        "settings": [{"kind": k, "mode": m, "keep": "1/9", "kept": 0.111, "scores": s} for k, m, s in rows],
    }
    return base | changes


METHODS = [
    ("unpruned", "default", [1, 1, 1, 1]),
    ("random", "seed 0", [1, 0, 0, 0]),
    ("random", "seed 1", [1, 0, 1, 0]),
    ("downsample", "default", [1, 1, 0, 0]),
    ("visionzip", "default", [1, 1, 1, 0]),
    ("visionzip", "published", [0, 1, 0, 0]),
]


def test_the_page_pairs_every_method_with_three_references() -> None:
    page = accuracy_page.markdown([report(METHODS)], "methods", "python benchmarks/accuracy.py --out x")
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    # to unpruned -1/4; to Random's mean (1, 0, 1/2, 0) differences 0, 1, 1/2, 0; to Downsample 0, 0, 1, 0
    assert "| visionzip | default | 0.111 | 75.0 | 75 % | -25.0 ± 25.0 | +37.5 ± 23.9 | +25.0 ± 25.0 |" in lines
    assert "| random | mean of seeds | 0.111 | 37.5 | 38 % | -62.5 ± 23.9 |  | -12.5 ± 31.5 |" in lines
    assert [line.split(" | ")[0] for line in lines[1:]] == sorted(line.split(" | ")[0] for line in lines[1:])
    for said in (
        "`w0`",
        "4 questions",
        "foveate 9.9",
        "--out x",
        "0.050 CPU seconds",
        "Cannot keep so little",
        "fastv",
        "40.0 % of 144 tokens show something, 11.3 % are evidence",
    ):
        assert said in page, said


def test_the_page_of_switches_compares_with_the_default() -> None:
    rows = [METHODS[0], *METHODS[-2:]]
    page = accuracy_page.markdown([report(rows)], "switches", "x")
    assert "| visionzip | published | 75.0 | 25.0 | -50.0 ± 28.9 | 50 % |" in page


def test_an_unfinished_part_says_so() -> None:
    page = accuracy_page.markdown([report(METHODS, wanted=9)], "methods", "x")
    assert "Unfinished: 4 of 9 questions of `scenes:test` to `m`." in page
    assert "Unfinished: 0 of 9" in accuracy_page.markdown([report(METHODS, n=0, wanted=9, settings=[])], "methods", "x")


def test_a_page_without_its_baselines_is_refused() -> None:
    with pytest.raises(DataError, match="downsample"):
        accuracy_page.markdown([report([*METHODS[:3], METHODS[4]])], "methods", "x")


# -- the command ---------------------------------------------------------------------------------------------


def command(out: Path, *more: str) -> list[str]:
    wanted = ["--study", "switches", "--kinds", "hiprune", "--keeps", "1/9", "--models", DEFAULT, "--splits", "test"]
    return [sys.executable, str(BENCHMARKS / "accuracy.py"), "--out", str(out), *wanted, "--n", str(N), *more]


def answers(out: Path) -> dict[tuple[str, str], str]:
    (results,) = out.glob("*/results.jsonl")
    records = [json.loads(line) for line in results.read_text().splitlines()[1:]]
    found = {(r["setting"], r["sample"]): r["prediction"] for r in records}
    assert len(found) == len(records), "an answer was stored twice"
    return found


def lines(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in out.glob("*/results.jsonl"))


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    out, page = tmp_path / "killed", tmp_path / "page.md"
    process = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while lines(out) < 2:
        assert process.poll() is None, "ended before it was killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)  # the command, not its worker
    process.wait()
    stopped = lines(out)
    assert stopped < 1 + 3 * N
    for _ in range(200):  # the worker ends by itself and lets go of the answers
        again = subprocess.run(
            command(out, "--markdown", str(page)), capture_output=True, text=True, check=False, timeout=500
        )
        if "Another process is writing" not in again.stderr:
            break
        time.sleep(0.1)
    assert again.returncode == 0, again.stderr
    assert re.search(rf"all {N} questions of each part: \d+\.\d hours", again.stdout)
    whole = tmp_path / "whole"
    subprocess.run(command(whole), capture_output=True, check=True, timeout=500)
    assert answers(out) == answers(whole)
    assert len(answers(out)) == 3 * N  # unpruned, default, wrap
    text = page.read_text()
    assert f"the first {N} questions, 3 settings" in text
    assert re.search(r"\| hiprune \| `wrap=True` \| \d+\.\d \| \d+\.\d \| [+-]\d+\.\d ± \d+\.\d \| \d+ % \|", text)
