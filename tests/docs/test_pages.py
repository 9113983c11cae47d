"""Every Python and shell block of the README and of the docs runs, as pasted, one page after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.blocks import Block, blocks
from tests.docs.commands import check, check_options, commands
from tests.docs.running import ROOT, Reader
from tests.docs.stand_ins import fill

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "recipes" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
SHORT = [page for page in PAGES if any(b.runs and not b.long for b in blocks(page))]
LONG = [page for page in PAGES if any(b.runs and b.long for b in blocks(page))]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    fill(folder)
    return folder


def read(page: Path, long: bool) -> None:
    """Run the page's blocks; without `long` those that take long are left out."""
    with Reader() as reader:
        for block in blocks(page):
            if block.runs and (long or not block.long):
                print(f"--- {block}")
                reader.run(block)


@pytest.mark.parametrize("page", SHORT, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_blocks_run(page: Path, desk: Path) -> None:
    read(page, long=False)


@pytest.mark.docs_long
@pytest.mark.parametrize("page", LONG, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_long_blocks_run(page: Path, desk: Path) -> None:
    read(page, long=True)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_what_does_not_run_names_what_exists(page: Path) -> None:
    """Blocks are of a known kind; commands, options, extras, targets and scripts of all of them are there."""
    for block in blocks(page):
        if block.language == "python":
            compile(block.code, str(block), "exec")
        if block.language == "bash":
            for line in commands(block.code):
                check_options(line)
                check(line)


def test_a_reason_is_given_for_what_does_not_run() -> None:
    silent = [str(b) for page in PAGES for b in blocks(page) if b.reason is not None and len(b.reason) < 10]
    assert not silent


def test_no_code_is_hidden_by_indentation() -> None:
    """Such a block would neither be marked nor run. (Options of `mkdocstrings` are indented.)"""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in blocks(page):
            text = text.replace(block.code, "")
        lines = [line for line in text.splitlines() if re.match(r" {4} *(?!options:)\S", line)]
        found += [f"{page.name}: {line}" for line in lines]
    assert not found


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("foveate aks photo.jpg", "no such command"),
        ("foveate ask photo.jpg What --kepe 1", "kepe"),
        ("pip install 'foveate[nothing]'", "no extra"),
        ("make coffee", "no such target"),
        ("python benchmarks/nothing.py", "there is no"),
        ("python benchmarks/serving.py --speed", "knows no"),
    ],
)
def test_the_check_finds_what_is_not_there(line: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert not (check_options(line), check(line))[1]


def test_a_marker_is_read(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- not run: needs a cluster -->\n```bash\na\n```\n"
        "<!-- long, background -->\n```bash\nb\n```\n```python\nc\n```\n"
        "- x\n\n    ```text\n    d\n    ```\n"
    )
    first, second, third, fourth = blocks(page)
    assert (first.reason, first.runs, second.long, second.background) == ("needs a cluster", False, True, True)
    assert (third.runs, third.long, third.line, fourth.code) == (True, False, 9, "d\n")
    page.write_text("```\nwhat is this\n```\n")
    with pytest.raises(ValueError, match="page.md:1"):
        blocks(page)
    page.write_text("<!-- sometimes -->\n```bash\na\n```\n")
    with pytest.raises(ValueError, match="sometimes"):
        blocks(page)


def test_a_block_that_fails_fails(desk: Path, tmp_path: Path) -> None:
    with Reader() as reader:
        reader.run(Block(tmp_path / "p.md", 1, "python", "x = 1\n"))
        reader.run(Block(tmp_path / "p.md", 2, "python", "assert x == 1\n"))
        with pytest.raises(NameError):
            reader.run(Block(tmp_path / "p.md", 3, "python", "y\n"))
        for code in ("false\n", "foveate ask nothing.png What\n"):
            with pytest.raises(AssertionError):
                reader.run(Block(tmp_path / "p.md", 4, "bash", code))
