"""Links between the README, the pages and the files of the repository lead somewhere, anchors included."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from tests.docs.blocks import blocks
from tests.docs.running import ROOT

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "recipes" / "README.md"]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    for block in blocks(page):
        text = text.replace(block.code, "")
    return re.sub(r"`[^`\n]*`", lambda match: match[0] if "](" not in match[0] else "", text)


@cache
def anchors(page: Path) -> set[str]:
    """As GitHub and the site make them from headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.strip().lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain} | {re.sub(r"[-\s]+", "-", heading) for heading in plain}


def broken(page: Path, link: str) -> bool:
    if link.startswith(("http://", "https://", "mailto:")):
        return False
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    return not target.exists() or (target.suffix == ".md" and bool(anchor) and anchor not in anchors(target))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert not [link for link in LINK.findall(prose(page)) if broken(page, link)]


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# What it `does` not, do\n[a](page.md#what-it-does-not-do) [b](page.md#nothing) [c](none.py)\n")
    assert [broken(page, link) for link in LINK.findall(prose(page))] == [False, True, True]


def test_every_page_is_in_the_sites_navigation() -> None:
    listed = re.findall(
        r"^ +- [^:\n]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert sorted(listed) == sorted(set(listed))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= set(listed)
