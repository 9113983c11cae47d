"""The commands as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from threading import Thread

import pytest
from PIL import Image

from foveate import scenes
from foveate.cli.compare import speedup
from tests.cli import run
from tests.cli.run import foveate
from tests.inference.test_loading import bad_images


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    sample = scenes.load("test", 1)[0]
    path = tmp_path_factory.mktemp("ask") / "scene.png"
    sample.images[0].save(path)
    return path, sample.question


def test_ask_compares_and_draws(picture: tuple[Path, str], tmp_path: Path) -> None:
    out = tmp_path / "overlay.png"
    done = foveate("ask", picture[0], picture[1], "--keep", "1/5", "--compare", "--overlay", out)
    assert done.returncode == 0, done.stderr
    for word in (
        "answer",
        "unpruned",
        "vitcop",
        "before the LLM",
        "KV cache bytes",
        "LLM prefill ms",
        "time to first token ms",
        "100.0%",
    ):
        assert word in done.stdout
    with Image.open(out) as image:
        assert image.width >= 224


@pytest.mark.parametrize(
    ("times", "shown"),
    [
        ([10, 11, 12], " (2.73x)"),
        ([29, 28, 27], " (1.07x)"),  # clear: all are faster
        ([29.5, 31, 30.2], " (about equal)"),
        ([60, 61, 62], " (0.49x)"),
        ([10], " (about equal)"),
    ],
)
def test_a_speed_up_is_shown_only_where_the_measurements_lie_apart(times: list[float], shown: str) -> None:
    assert speedup([30, 29.4, 30.1], times) == shown


def test_json_is_one_object_and_nothing_else(picture: tuple[Path, str], tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    done = foveate("ask", *picture, "--method", "random:keep=25%", "--json", "--compare", "--overlay", out)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["format"], found["images"], found["overlay"]) == ("foveate.answer/1", 1, str(out))
    stock, pruned = found["answers"]
    assert stock["method"] is None
    assert pruned["method"] == "random(keep=0.25, layer=0, seed=0)"
    assert pruned["kept_tokens"] == pytest.approx(stock["visual_tokens"] / 4, abs=1)
    assert pruned["kv_bytes"] < pruned["kv_bytes_unpruned"] == stock["kv_bytes"]
    refused = foveate("ask", "nowhere.png", "What?", "--json")
    assert (refused.returncode, refused.stdout) == (1, "")


def test_answers_come_in_pieces_on_a_terminal(picture: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = foveate("ask", *picture).stdout.splitlines()

    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(run, "StringIO", Terminal)
    shown = foveate("ask", *picture, columns=160).stdout
    assert shown.splitlines()[0] == whole[0].split(maxsplit=1)[1].strip()
    assert "time to first token ms" in shown
    assert "answer " not in shown.splitlines()[2]


def test_pictures_from_folders_standard_input_and_addresses(
    picture: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, question = picture
    for name in ("b.PNG", "a.png"):
        (tmp_path / name).write_bytes(file.read_bytes())
    (tmp_path / "notes.txt").write_text("no picture")

    def images(*arguments: str | Path) -> int:
        done = foveate("ask", *arguments, question, "--json", "--max-new-tokens", "2", "--method", "random")
        assert done.returncode == 0, done.stderr
        return int(json.loads(done.stdout)["images"])

    assert images(tmp_path) == 2
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(file.read_bytes())))
    assert images("-", file) == 2
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert images(f"{address}/a.png", "--url") == 1
        assert "404" in foveate("ask", f"{address}/c.png", "What?", "--url").stderr
        server.shutdown()


def test_ask_about_two_images(picture: tuple[Path, str]) -> None:
    done = foveate("ask", picture[0], picture[0], picture[1], "--method", "random", "--keep", "0.5")
    assert done.returncode == 0, done.stderr
    assert "random" not in done.stderr


def test_methods_lists_and_explains() -> None:
    listed = foveate("methods")
    assert listed.returncode == 0
    assert "vitcop" in listed.stdout
    one = foveate("methods", "vitcop")
    assert "2601.17818" in one.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["What?"], "image file(s) first"),
        (["a.png", "What?", "--method", "nonsense"], "no image file"),
        (["{image}", "What?", "--method", "nonsense"], "vitcop"),
        (["{image}", "What is <|image_pad|>?"], "the question holds <|image_pad|>"),
        (["https://example.org/a.png", "What?"], "add --url to let it be fetched"),
        (["{image}", "What?", "--keep", "1.5"], "must lie in (0, 1]"),
        (["{image}", "What?", "--keep", "a third"], "write a ratio"),
        (["{image}", "What?" * 99, "--keep", "0"], "must lie in (0, 1]"),
        (["{image}", "What?", "--module", "somewhere"], "has no module"),
        (["{image}", "What?", "--method", "foveate.json", "--keep", "0.1"], "leave keep out"),
        (["{image}", "What?", "--keep", "1/3,1/9"], "one budget a question"),
        (["{image}", "{image}"], "question last"),
        (["recipes", "What?"], "no pictures"),
        (["{image}", "What?", "--model", "/nowhere/at/all"], "Cannot load"),
    ],
)
def test_errors_are_one_readable_line(arguments: list[str], message: str, picture: tuple[Path, str]) -> None:
    done = foveate("ask", *[a.replace("{image}", str(picture[0])) for a in arguments])
    assert done.returncode == 1
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_bad_images_in_ask(tmp_path: Path) -> None:
    path = bad_images(tmp_path)[r"100 megapixels, the limit"]
    done = foveate("ask", path, "What?")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_demo_as_a_command(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from foveate.cli import main; main()",
        "demo",
        "--out",
        str(tmp_path / "demo.png"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "true answer" in done.stdout
    assert "rendered scenes only" in done.stdout
    with Image.open(tmp_path / "demo.png") as page:
        assert 1200 < page.width <= 1500
