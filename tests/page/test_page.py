"""The page: what it computes, and what a real browser shows of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="needs the extra `page`")

from foveate import scenes
from foveate.errors import FoveateError, OutputError
from foveate.inference.answer import Asker
from foveate.methods import make
from foveate.page.app import EXAMPLES, NOTHING, Page, launch
from foveate.page.bars import WAITING, bars
from foveate.page.comparing import Side, compare
from foveate.specs.settings import setting
from foveate.trace.overlay import KEPT, overlays
from foveate.zoo import DEFAULT
from tests.cli.run import foveate

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or ""
QUIET = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(Asker.load(DEFAULT, 8, device="cpu"), DEFAULT, setting("vitcop"))


@pytest.fixture
def scene(tmp_path: Path) -> tuple[str, str]:
    sample = scenes.load("test", 1, EXAMPLES[0])[0]
    sample.images[0].save(tmp_path / "scene.png")
    return str(tmp_path / "scene.png"), sample.question


def test_answers_are_those_of_the_asker_and_come_in_turns(page: Page, scene: tuple[str, str]) -> None:
    seen = list(page.ask(*scene, "vitcop", 0.11))
    image = Image.open(scene[0])
    inputs = page.asker.questions([([image], scene[1])])
    method = make("vitcop", keep=0.11)
    stock, pruned = (page.asker.answer(inputs, one)[0] for one in (None, method))
    assert seen[-1][:2] == (stock.text, pruned.text)
    assert any(first and not second for first, second, *_ in seen)  # the one streams before the other begins
    assert all(outputs[2:] == NOTHING[2:] for outputs in seen[:-1])
    trace = json.loads(json.dumps(seen[-1][4]))
    assert trace["vitcop"]["alive_per_layer"] == pruned.prefill.alive_per_layer()
    assert trace["unpruned"]["keep_ratio"] == 1.0
    assert len(seen[-1][3]) == 1 + len(pruned.prefill.groups[0].steps)


def test_pictures_by_stage_lose_tokens_and_end_with_the_whole(page: Page, scene: tuple[str, str]) -> None:
    image = Image.open(scene[0]).convert("RGB")
    *_, (_, pruned) = compare(page.asker, image, scene[1], make("vitcop", keep=0.2))
    assert pruned.answer is not None
    found = overlays(image, pruned.answer.prefill)
    frames = [int((np.asarray(one) == KEPT).all(-1).sum()) for one in found]
    assert len(found) == 3
    assert frames == sorted(frames, reverse=True)
    assert len(set(frames)) == 3
    assert np.array_equal(np.asarray(found[-1]), np.asarray(pruned.answer.trace.overlay(image)))


@pytest.mark.parametrize("method", ["glimpse_prune", "random", "downsample", "prumerge"])
def test_other_kinds_of_method_can_be_asked(page: Page, scene: tuple[str, str], method: str) -> None:
    assert method in page.methods
    *_, last = page.ask(*scene, method, 0.25)
    assert f"<span>{method}</span>" in last[2]


def test_bars_compare_only_what_can_be_told_apart(page: Page, scene: tuple[str, str]) -> None:
    image = Image.open(scene[0])
    *_, (stock, pruned) = compare(page.asker, image, scene[1], make("random", keep=0.1))
    assert bars(replace(stock, readings=()), pruned) == bars(Side("a"), Side("b")) == WAITING
    same = bars(stock, replace(stock, name="<b>"))
    assert "x less" not in same
    assert "x more" not in same
    assert "&lt;b&gt;" in same
    assert "<b>" not in same
    assert "x less" in bars(stock, pruned)  # tokens and bytes, whatever the times are


@pytest.mark.parametrize(
    ("picture", "question", "keep", "message"),
    [
        (None, "What?", 0.1, "Give a picture first"),
        ("scene", "  ", 0.1, "Write a question"),
        ("scene", "<|image_pad|>", 0.1, "image_pad"),
        ("text", "What?", 0.1, "cannot be read as an image"),
        ("scene", "What?", 0.0, "keep"),
        ("scene", "word " * 1000, 0.1, "5,000 letters"),
    ],
)
def test_what_cannot_be_asked_is_told(
    page: Page, scene: tuple[str, str], tmp_path: Path, picture: str | None, question: str, keep: float, message: str
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    file = picture and {"scene": scene[0], "text": str(tmp_path / "text.png")}[picture]
    with pytest.raises(FoveateError, match=message):
        list(page.ask(file, question, "vitcop", keep))


def test_the_page_says_what_its_model_knows(page: Page) -> None:
    assert "scenes only" in page.about()
    other = Page.__new__(Page)
    other.model = "/models/llava"
    assert "scenes only" not in other.about()


def test_a_wrong_method_shows_before_a_model_is_loaded() -> None:
    done = foveate("page", "--method", "nothing_such")
    assert done.returncode == 1
    assert "There is no method" in done.stderr


def test_the_first_method_is_what_was_written_and_the_slider_is_its_budget(page: Page, scene: tuple[str, str]) -> None:
    written = Page(page.asker, DEFAULT, setting("(fastervlm + fastv:layer=3):keep=1/4"))
    assert (written.methods[0], written.keep) == ("fastervlm + fastv:layer=3", 0.25)
    *_, last = written.ask(*scene, written.methods[0], 0.5)
    assert last[4]["compose"]["method"] == str(setting("fastervlm + fastv:layer=3", 0.5).make())
    with pytest.raises(FoveateError, match="leave keep out"):
        Page(page.asker, DEFAULT, setting("none"))


@pytest.fixture(scope="module")
def blocks(page: Page) -> Iterator[Any]:
    running = launch(page, 0)
    yield running
    running.close()


def test_a_taken_port_is_told(page: Page, blocks: Any) -> None:
    with pytest.raises(OutputError, match="--port"):
        launch(page, blocks.server_port)


def test_it_answers_to_names_of_this_machine_only(blocks: Any) -> None:
    for name, status in (("evil.example", 400), ("127.0.0.1.evil.example", 400), ("localhost", 200)):
        assert httpx2.get(blocks.local_url, headers={"Host": f"{name}:{blocks.server_port}"}).status_code == status


@pytest.fixture
def browser_page() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if not CHROMIUM:
        pytest.skip("needs chromium (or its path in CHROMIUM)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser.new_page(viewport={"width": 1280, "height": 1000})
        browser.close()


def test_in_a_browser(blocks: Any, browser_page: Any, tmp_path: Path) -> None:
    tab, home = browser_page, blocks.local_url
    assert home.startswith("http://127.0.0.1:")
    outside: list[str] = []
    tab.on("request", lambda r: outside.append(r.url) if not r.url.startswith((home, "data:", "blob:")) else None)
    problems: list[str] = []
    tab.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.goto(home)
    tab.get_by_text("answers about such scenes only").wait_for()
    tab.click("#ask")
    tab.get_by_text("Give a picture first").wait_for()
    tab.locator("table tbody tr").nth(0).click()
    tab.wait_for_selector("#picture img")
    tab.click("#ask")
    tab.wait_for_selector("#stages img", timeout=120_000)
    expected = scenes.load("test", 1, EXAMPLES[0])[0]
    assert tab.input_value("#question textarea, #question input") == expected.question
    assert tab.input_value("#stock textarea") == tab.input_value("#pruned textarea") == expected.answer
    assert tab.locator("#stages img").count() == 4
    assert "x less" in tab.locator("#saved section", has_text="Visual tokens").inner_text()
    widths = tab.locator("#saved section", has_text="KV cache").locator(".bar")
    assert 0 < widths.nth(1).bounding_box()["width"] < 0.5 * widths.nth(0).bounding_box()["width"]
    tab.locator("#trace button").first.click()
    tab.get_by_text("alive_per_layer").first.wait_for()
    wide = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    tab.set_viewport_size({"width": 420, "height": 900})
    narrow = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert (wide, narrow) == (0, 0), "the page scrolls sideways"
    tab.screenshot(path=os.environ.get("FOVEATE_SCREENSHOT", tmp_path / "page.png"), full_page=True)
    assert not outside, "something was asked of another machine"
    assert not problems
