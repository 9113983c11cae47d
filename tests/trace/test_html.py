"""A trace and an answer as notebooks show them."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import pytest
from PIL import Image

import foveate
from foveate.inference.answer import Answer
from foveate.methods import ViTCoP
from foveate.trace.html import MOST, render
from foveate.trace.records import PrefillTrace
from foveate.trace.text import title
from tests.reference import generate
from tests.tiny import Tiny


class Page(HTMLParser):
    """Tags, their attributes and the text; a tag that is not closed fails."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "img":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def traced(tiny: Tiny, rows: list) -> foveate.Trace:
    with foveate.prune(tiny.model, ViTCoP(keep=0.3)) as trace:
        generate(tiny.model, tiny.batch(rows), 2)
    return trace


def test_a_trace_shows_numbers_and_maps_with_words(tiny_llava: Tiny) -> None:
    trace = traced(tiny_llava, [[3, (4, 4), 5]])
    page = Page(trace._repr_html_())
    assert f"{trace.keep_ratio:.1%} of {trace.last.visual_tokens} per layer" in page.text
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 1
    kept = len(trace.last.groups[0].alive_at(trace.layers))
    assert f"{kept} of {trace.last.visual_tokens} visual tokens" in str(images[0]["alt"])
    head, _, data = str(images[0]["src"]).partition(",")
    assert head == "data:image/png;base64"
    Image.open(io.BytesIO(base64.b64decode(data))).verify()
    bars = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert ", ".join(map(str, trace.last.alive_per_layer())) in str(bars[0]["aria-label"])


@pytest.mark.parametrize(
    ("method", "shown"),
    [
        ("vitcop(keep=0.3, deep_layer=None, kernel_width=8.0, queries=None)", "vitcop(keep=0.3, kernel_width=8.0)"),
        ("compose(keep=None, methods=(A(keep=None), B(x=None, y=1)))", "compose(methods=(A(), B(y=1)))"),
        ("none", "none"),
    ],
)
def test_parameters_that_are_not_set_are_left_out(method: str, shown: str) -> None:
    assert title(PrefillTrace(method, 2)) == shown


def test_nothing_yet_and_many_images(tiny_llava: Tiny) -> None:
    with foveate.prune(tiny_llava.model, ViTCoP(keep=0.3)) as trace:
        assert "no visual tokens seen yet" in Page(trace._repr_html_()).text
    trace = traced(tiny_llava, [[2, (4, 4), 2, (4, 4), 2, (4, 4)], [2, (4, 4), 2, (4, 4), 2]])
    page = Page(trace._repr_html_())
    assert sum(tag == "img" for tag, _ in page.tags) == MOST
    assert "and 1 more images" in page.text
    own = Page(render(trace.last, row=1))
    assert [attributes["alt"].split(",")[0] for tag, attributes in own.tags if tag == "img"] == ["Map of row 1"] * 2


def test_markup_in_an_answer_is_text(tiny_llava: Tiny) -> None:
    trace = traced(tiny_llava, [[3, (4, 4), 5]])
    trace.last.method = "<script>alert(1)</script>"
    said = "</b><img src=x onerror=alert(1)> & 'so'"
    page = Page(Answer(said, (1,), "end", 0, trace)._repr_html_())
    assert said in page.text
    assert "<script>alert(1)</script>" in page.text
    assert not any(tag == "script" or "onerror" in attributes for tag, attributes in page.tags)
