"""The fenced blocks of a page, and what a comment above one says about running it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

RUNS = ("python", "bash")
"""Languages of blocks that run; those of the others are data, output or drawings."""
SHOWN = ("text", "toml", "yaml", "json", "jinja", "mermaid")
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]*)[^\n]*\n(?P<code>.*?)^(?P=indent)```\s*$", re.DOTALL | re.MULTILINE
)
COMMENT = re.compile(r"^<!--((?:(?!-->).)*)-->\n *\Z", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    A comment on the line above says how it is run, otherwise at once and on every run:

    - `<!-- not run: REASON -->`: never; that its commands and options exist is checked all the same.
    - `<!-- long -->`: by `make docs-test` only.
    - `<!-- background -->`, `<!-- long, background -->`: a server, which stays until the page's last block has run.

    Attributes:
        line: where its fence stands, counted from 1.
    """

    page: Path
    line: int
    language: str
    code: str
    reason: str | None = None
    long: bool = False
    background: bool = False

    @property
    def runs(self) -> bool:
        return self.language in RUNS and self.reason is None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All fenced blocks, in order.

    Raises:
        ValueError: a fence without a known language, or a comment in other words.
    """
    text = page.read_text(encoding="utf-8")
    return [_block(page, text, match) for match in FENCE.finditer(text)]


def _block(page: Path, text: str, match: re.Match[str]) -> Block:
    line = text.count("\n", 0, match.start()) + 1
    language = match["language"]
    if language not in RUNS + SHOWN:
        raise ValueError(f"{page.name}:{line}: a block in {language or 'no language'}; there are {RUNS + SHOWN}")
    code = re.sub(rf"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
    above = COMMENT.search(text[: match.start()])
    said = above[1].strip() if above else ""
    if said.startswith("not run: "):
        return Block(page, line, language, code, reason=said.removeprefix("not run: "))
    words = {word.strip() for word in said.split(",")} - {""}
    if language in RUNS and not words <= {"long", "background"}:
        raise ValueError(f"{page.name}:{line}: the comment above says {said!r}")
    return Block(page, line, language, code, None, "long" in words, "background" in words)
