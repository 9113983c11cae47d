"""Ordinary mistakes of every command: one line that says what and how to mend it, before anything is computed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from foveate import zoo
from foveate.inference import loading
from foveate.specs.tuned import Tuned
from tests.cli.run import foveate

ASK = ["ask", "{image}", "What?"]
EVAL = ["eval", "--limit", "2", "--out", "{out}"]
TUNE = ["tune", "--limit", "2", "--out", "{out}", "--write", "{out}/foveate.json"]
BENCH = ["bench", "--repeats", "1", "--warmup", "0", "--no-memory"]
GLIMPSE = ["train", "glimpse", "--model", "foveate/scenes-qwen2_5_vl", "--data", "scenes:train", "--limit", "2"]
PLUS = ["train", "plus", "--model", "foveate/scenes-qwen2_5_vl", "--data", "scenes:train", "--limit", "2"]
NO_ID = "nowhere/at-all"

MISTAKES: list[tuple[list[str], str]] = [
    # a device that is not there, a dtype, an attention implementation
    *((([*c, "--device", "cuda:63"]), "no device 'cuda:63' here") for c in (ASK, EVAL, TUNE, BENCH)),
    *((([*c, "--device", "gpu"]), "no device 'gpu' here") for c in (ASK, EVAL, TUNE, BENCH)),
    *((([*c, "--dtype", "int8"]), "dtype 'int8': write float32") for c in (ASK, EVAL, TUNE, BENCH)),
    *((([*c, "--attention", "flash_attention_2"]), "pip install flash-attn") for c in (ASK, EVAL, TUNE, BENCH)),
    *((([*c, "--attention", "quick"]), "no attention implementation 'quick'; there are") for c in (ASK, EVAL, BENCH)),
    ([*BENCH, "--model", "mid-llava", "--device", "cuda:63"], "no device 'cuda:63' here"),
    ([*BENCH, "--model", "mid-llava", "--dtype", "half"], "dtype 'half'"),
    ([*BENCH, "--model", "mid-llava", "--attention", "flash_attention_2"], "pip install flash-attn"),
    # models
    *((([*c, "--model", "/no/such/folder"]), "there is no such folder") for c in (ASK, EVAL, TUNE, BENCH)),
    *((([*c, "--model", NO_ID]), "HF_HUB_OFFLINE forbids") for c in (ASK, EVAL, TUNE, BENCH)),
    *((([*c, "--model", "foveate/nothing"]), "no zoo model is called") for c in (ASK, EVAL, TUNE, BENCH)),
    *((([*c, "--model", "{image}"]), "it is a file") for c in (ASK, EVAL, TUNE, BENCH)),
    *((([*c, "--model", "{empty}"]), "has no config.json") for c in (ASK, EVAL, TUNE, BENCH)),
    ([*BENCH, "--model", "lava-7b"], "a preset with random weights (llava-1.5-7b"),
    ([*GLIMPSE, "--model", "/no/such/folder", "--out", "{out}"], "there is no such folder"),
    ([*PLUS, "--model", NO_ID, "--out", "{out}"], "HF_HUB_OFFLINE forbids"),
    (["merge", "--model", NO_ID, "--adapter", "{empty}", "--out", "{out}"], "holds no LoRA adapter"),
    (["merge", "--model", NO_ID, "--adapter", "{adapter}", "--out", "{out}"], "HF_HUB_OFFLINE forbids"),
    (["merge", "--model", zoo.DEFAULT, "--adapter", "{adapter}", "--out", "{out}", "--dtype", "int8"], "dtype 'int8'"),
    (["convert", "glimpse", "{empty}", "{out}"], "config.json"),
    (["convert", "glimpse", "/no/such/folder", "{out}"], "/no/such/folder"),
    # places that cannot be written
    ([*ASK, "--overlay", "/dev/null/x.png"], "Cannot write /dev/null/x.png"),
    ([*ASK, "--overlay", "{empty}"], "it is a folder"),
    ([*ASK, "--overlay", "{out}/x.docx"], "must end in one of .png"),
    (["demo", "--out", "/dev/null/x.png"], "Cannot write /dev/null/x.png"),
    (["demo", "--out", "{out}/picture"], "must end in one of .png"),
    (["eval", "--limit", "2", "--out", "/dev/null/x"], "/dev/null is a file, not a folder"),
    (["eval", "--limit", "2", "--out", "{image}"], "is a file, not a folder"),
    (["tune", "--limit", "2", "--out", "/dev/null/x"], "/dev/null is a file, not a folder"),
    (["tune", "--limit", "2", "--out", "{out}", "--write", "/dev/null/x.json"], "Cannot write /dev/null/x.json"),
    (["tune", "--limit", "2", "--out", "{out}", "--write", "{out}/foveate.txt"], "must end in one of .json"),
    *((([*BENCH, f"--{kind}", "/dev/null/x.png"]), "Cannot write /dev/null/x.png") for kind in ("json", "csv", "plot")),
    ([*BENCH, "--plot", "{out}/x.doc"], "must end in one of .png"),
    ([*BENCH, "--json", "{empty}"], "it is a folder"),
    ([*GLIMPSE, "--out", "/dev/null/x"], "/dev/null is a file, not a folder"),
    ([*PLUS, "--out", "/dev/null/x"], "/dev/null is a file, not a folder"),
    (["train", "plus", "--config", "{schedule}", "--out", "/dev/null/x"], "/dev/null is a file, not a folder"),
    (["merge", "--model", NO_ID, "--adapter", "{adapter}", "--out", "/dev/null/x"], "is a file, not a folder"),
    (["convert", "glimpse", "{empty}", "/dev/null/x"], "/dev/null is a file, not a folder"),
    (["scenes", "render", "--out", "/dev/null/x"], "/dev/null is a file, not a folder"),
    # methods, budgets, files
    *(
        (([*c, "--method", "vitcap"]), "no method 'vitcap'. Did you mean vitcop? There are")
        for c in (ASK, EVAL, TUNE, BENCH)
    ),
    *((([*c, "--keep", "1.5"]), "must lie in (0, 1]") for c in (ASK, EVAL, TUNE, BENCH)),
    *((([*c, "--method", "{out}/foveate.json"]), "Cannot read") for c in (ASK, EVAL, TUNE, BENCH)),
    (["methods", "vitcap"], "no method 'vitcap'. Did you mean vitcop? There are"),
    (["demo", "--keep", "much"], "write a ratio"),
    (["demo", "--image", "{image}"], "needs a --question"),
    ([*EVAL, "--data", "nowhere.jsonl"], "nowhere.jsonl"),
    ([*EVAL, "--metric", "luck"], "luck"),
    (["scenes", "render", "--out", "{out}", "--split", "[/x]"], "no split is called '[/x]'"),
    ([*GLIMPSE, "--out", "{out}", "--set", "nothing=1"], "nothing"),
    (["train", "plus", "--config", "/no/such.yaml"], "cannot be read"),
    # pictures
    (["ask", "{strip}", "What?"], "times the other"),
    ([*BENCH, "--image", "{strip}"], "times the other"),
    ([*BENCH, "--image", "/no/such.png"], "no image file"),
    (["demo", "--image", "{strip}", "--question", "What?"], "times the other"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("mistakes")
    for name in ("empty", "adapter"):
        (folder / name).mkdir()
    (folder / "adapter" / "adapter_model.safetensors").touch()
    Image.new("RGB", (60, 60)).save(folder / "image.png")
    Image.new("RGB", (1000, 4)).save(folder / "strip.png")
    schedule = f"model: {zoo.DEFAULT}\ndata: scenes:train\nout: elsewhere\nmodule: {zoo.resolve(zoo.DEFAULT)}/glimpse\n"
    (folder / "schedule.yaml").write_text(schedule)
    names = {name: str(folder / f"{name}.png") for name in ("image", "strip")}
    names |= {name: str(folder / name) for name in ("empty", "adapter", "out")}
    return names | {"schedule": str(folder / "schedule.yaml")}


@pytest.fixture(autouse=True)
def no_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "flash_attn" else there(name, *a))


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=[" ".join(c)[:60] for c, _ in MISTAKES])
def test_a_mistake_is_one_line(number: int, places: dict[str, str], tmp_path: Path) -> None:
    command, message = MISTAKES[number]
    places = places | {"out": str(tmp_path / "out")}
    for name, place in places.items():
        command = [part.replace(f"{{{name}}}", place) for part in command]
    done = foveate(*command)
    assert done.returncode == 1, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert message in said[0]


@pytest.mark.parametrize(
    ("command", "packages", "extra"),
    [
        ([*EVAL], ["matplotlib"], "eval"),
        ([*EVAL], ["jinja2"], "eval"),
        ([*BENCH, "--plot", "{out}/a.png"], ["matplotlib"], "eval"),
        ([*GLIMPSE, "--out", "{out}"], ["accelerate"], "train"),
        ([*PLUS, "--out", "{out}"], ["trl"], "train"),
        ([*PLUS, "--out", "{out}", "--judge-model", "m"], ["openai"], "train"),
        (["train", "plus", "--config", "a.yaml"], ["yaml"], "train"),
        (["merge", "--model", NO_ID, "--adapter", "{adapter}", "--out", "{out}"], ["peft"], "train"),
    ],
)
def test_missing_extras_are_told_before_the_run(
    command: list[str],
    packages: list[str],
    extra: str,
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in packages else there(name, *a))
    monkeypatch.setattr(loading, "load", lambda *a, **k: pytest.fail("a model was loaded first"))
    for name, place in (places | {"out": str(tmp_path / "out")}).items():
        command = [part.replace(f"{{{name}}}", place) for part in command]
    done = foveate(*command)
    assert done.returncode == 1
    assert f"needs {packages[0]}: pip install 'foveate[{extra}]'" in done.stderr


@pytest.mark.parametrize("command", [ASK, [*EVAL, "--no-report"], BENCH])
def test_a_file_tuned_on_another_model_warns(command: list[str], places: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "foveate.json"
    run: dict[str, Any] = {"model": "some/[/model]", "weights": "others", "dtype": "float32"}
    file.write_text(Tuned("random", {"keep": 0.5}, {"run": run}).to_json())
    more = ["--new-tokens", "4"] if command is BENCH else ["--max-new-tokens", "2"]
    for name, place in (places | {"out": str(tmp_path / "out")}).items():
        command = [part.replace(f"{{{name}}}", place) for part in command]
    done = foveate(*command, "--method", file, *more)
    assert done.returncode == 0, done.stderr
    warned = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 1
    assert "was tuned on some/[/model]" in warned[0]
    own = json.loads(file.read_text())
    own["evidence"] = {}
    file.write_text(json.dumps(own))
    assert "warning: " not in foveate(*command, "--method", file, *more).stderr


def test_a_full_disk_is_one_line(places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr("foveate.trace.overlay.save", full)
    done = foveate("ask", places["image"], "What?", "--overlay", tmp_path / "a.png", "--max-new-tokens", "2")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "error: No space left on device: somewhere.")
