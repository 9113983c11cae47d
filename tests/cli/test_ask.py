"""The commands as a user types them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from foveate import scenes
from foveate.cli.compare import speedup
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
        (["https://example.org/a.png", "What?"], "does not fetch"),
        (["{image}", "What?", "--keep", "1.5"], "must lie in (0, 1]"),
        (["{image}", "What?", "--keep", "a third"], "write a ratio"),
        (["{image}", "What?" * 99, "--keep", "0"], "must lie in (0, 1]"),
        (["{image}", "What?", "--module", "somewhere"], "has no module"),
        (["{image}", "What?", "--method", "foveate.json", "--keep", "0.1"], "leave keep out"),
        (["{image}", "What?", "--keep", "1/3,1/9"], "one budget a question"),
        (["{image}", "{image}"], "question last"),
        (["{image}", "What?", "--model", "/nowhere/at/all"], "Cannot load"),
    ],
)
def test_errors_are_one_readable_line(arguments: list[str], message: str, picture: tuple[Path, str]) -> None:
    done = foveate("ask", *[a.replace("{image}", str(picture[0])) for a in arguments])
    assert done.returncode == 2
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_bad_images_in_ask(tmp_path: Path) -> None:
    path = bad_images(tmp_path)[r"100 megapixels, the limit"]
    done = foveate("ask", path, "What?")
    assert done.returncode == 2
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
