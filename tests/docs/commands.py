"""The commands of a shell block: what can be said about one without running it."""

from __future__ import annotations

import re
import shlex
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).parents[2]
ASSIGNMENTS = re.compile(r"^(?:\w+=\S*\s+)+")
"""Variables before a command, as in `OMP_NUM_THREADS=1 foveate ...`."""


def commands(code: str) -> list[str]:
    """Commands with their continuations and what their quotes span, without comments."""
    found, begun = [], ""
    for line in code.replace("\\\n", " ").splitlines():
        begun = f"{begun}\n{line}" if begun else line.strip()
        try:
            words = shlex.split(begun, comments=True)
        except ValueError:  # a quotation goes on in the next line
            continue
        found += [begun] if words else []
        begun = ""
    return found


def check(line: str) -> bool:
    """Whether this is an installation, a make target or a script of ours; then it is checked that it is there.

    Raises:
        AssertionError: an extra, target, file or option that there is not.
    """
    words = shlex.split(ASSIGNMENTS.sub("", line), comments=True)
    if words[:2] == ["pip", "install"]:
        extras = re.findall(r"foveate\[([\w,]+)\]|\.\[([\w,]+)\]", line)
        named = {extra for pair in extras for extra in ",".join(pair).split(",")} - {""}
        assert named <= _extras(), f"{line}: there is no extra {named - _extras()}"
        return True
    if words[0] == "make":
        assert words[1] in _targets(), f"{line}: there is no such target"
        return True
    if words[0] == "python" and len(words) > 1 and (script := _script(words)):
        files = script.parent.glob("*.py") if script.name == "__main__.py" else [script]
        text = "".join(file.read_text(encoding="utf-8") for file in files)
        unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in text]
        assert not unknown, f"{line}: {script.name} knows no {unknown}"
        return True
    return False


def check_options(line: str) -> None:
    """That a `foveate ...` command exists and takes these options; it is parsed, not run.

    Raises:
        AssertionError: with the parser's message.
    """
    line = ASSIGNMENTS.sub("", line)
    if not line.startswith("foveate "):
        return
    words = shlex.split(line, comments=True)[1:]
    for number, word in enumerate(words):
        if word in ("|", "&&", ";", "&", "<", ">", "2>"):
            words = words[:number]
            break
    command: Any = _app()
    while hasattr(command, "commands"):
        assert (words and words[0] in command.commands) or words[:1] == ["--help"], f"{line}: no such command"
        if words[0] == "--help":
            return
        command, words = command.commands[words[0]], words[1:]
    try:
        command.make_context(command.name, words)
    except Exception as error:
        raise AssertionError(f"{line}: {getattr(error, 'message', error)}") from error


@cache
def _app() -> Any:
    from foveate.cli.app import app

    return typer.main.get_command(app)


@cache
def _extras() -> set[str]:
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


@cache
def _targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def _script(words: list[str]) -> Path | None:
    """The file of `python benchmarks/x.py` or `python -m benchmarks.x`."""
    name = words[2].replace(".", "/") if words[1] == "-m" else words[1]
    if not name.startswith(("benchmarks/", "recipes/")):
        return None
    places = [ROOT / name, ROOT / f"{name}.py", ROOT / name / "__main__.py"]
    found = next((place for place in places if place.is_file()), None)
    assert found is not None, f"there is no {name}"
    return found
