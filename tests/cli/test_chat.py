"""`foveate chat`, typed into."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from foveate import scenes
from foveate.cli.chat import HELP
from tests.cli.run import Done, foveate


def typed(monkeypatch: pytest.MonkeyPatch, lines: list[str], *arguments: str | Path) -> Done:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    return foveate("chat", *arguments)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    sample = scenes.load("test", 1)[0]
    folder = tmp_path_factory.mktemp("chat scenes")
    sample.images[0].save(folder / "scene.png")
    return folder / "scene.png", sample.question


def test_a_conversation(picture: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    file, question = picture
    lines = [
        question, question, "/trace", "/keep 1/2", question, "/trace", "/method fastv:layer=0", "/nonsense",
        f"/image '{file}' nowhere.png", f"/image '{file.parent}'", "", "/method random", question, "/trace", "/new",
        "/trace", "/help", "/quit", question,
    ]  # fmt: skip
    done = typed(monkeypatch, lines, file, "--keep", "1/4", "--max-new-tokens", "6")
    assert done.returncode == 0, done.stderr
    asked = foveate("ask", file, question, "--keep", "1/4", "--max-new-tokens", "6").stdout.splitlines()[0].split()[-1]
    said = done.stdout.splitlines()
    assert said[0] == asked
    for words in ("vitcop(keep=0.25", "vitcop(keep=0.5", "vitcop 1/2", "random(keep=0.111", "bytes of keys and values"):
        assert words in done.stdout
    assert "1 for the next question" in said
    assert "no pictures were read yet" in said
    assert HELP in done.stdout
    errors = done.stderr.splitlines()
    assert len(errors) == 3
    assert "There is no /nonsense; there are /image" in errors[1]
    assert "no image file at nowhere.png" in errors[2]


def test_without_a_picture_and_to_the_end_of_input(monkeypatch: pytest.MonkeyPatch) -> None:
    done = typed(monkeypatch, ["Hello?", "/keep", "/image"], "--max-new-tokens", "2")
    assert done.returncode == 0, done.stderr
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "error"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "nothing_such"], "no method"),
        (["--keep", "1/3,1/9"], "one budget"),
        (["nowhere.png"], "no image file"),
        (["https://example.org/a.png"], "add --url"),
    ],
)
def test_mistakes(arguments: list[str], words: str) -> None:
    done = foveate("chat", *arguments)
    assert done.returncode == 1
    assert words in done.stderr
