"""`response_format`: answers that follow a JSON schema, through the batch and all."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from transformers import LogitsProcessorList

from foveate.methods import make
from foveate.serve.options import ServeOptions
from tests.serve.live import body, post, scenes, served, zoo_asker

SCHEMA = {
    "type": "object",
    "properties": {"seen": {"type": "boolean"}, "shape": {"enum": ["circle", "square"]}},
    "required": ["seen", "shape"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(ServeOptions(rows=8)) as (address, _):
        yield address


def wish(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "seen", "schema": schema} | more}


def test_answers_follow_their_schemas_and_others_are_as_ever(address: str) -> None:
    pytest.importorskip("llguidance")
    from foveate.inference.schemas import SchemaCompiler

    asker, method = zoo_asker(), make("vitcop", keep=1 / 3)
    compiler = SchemaCompiler.of(asker.model, asker.processor.tokenizer)
    asked = list(zip(scenes(6), [wish(SCHEMA), {"type": "text"}, wish(SCHEMA, strict=True)] * 2, strict=True))
    bodies = [body([image], text, response_format=form, max_tokens=40) for (image, text), form in asked]
    with ThreadPoolExecutor(6) as pool:
        replies = [reply.json() for reply in pool.map(lambda one: post(address, one), bodies)]
    for reply, ((image, text), form) in zip(replies, asked, strict=True):
        more = {}
        if form["type"] != "text":
            more["logits_processor"] = LogitsProcessorList([compiler.compile(SCHEMA).processor()])
        expected = asker.answer(asker.questions([([image], text)]), method, max_new_tokens=40, **more)[0]
        assert reply["choices"][0]["message"]["content"] == expected.text
        if more:
            assert json.loads(expected.text).keys() == {"seen", "shape"}
            assert reply["choices"][0]["finish_reason"] == "stop"


def test_several_drawn_answers(address: str) -> None:
    pytest.importorskip("llguidance")
    wanted = body([scenes(1)[0][0]], "Hm?", n=4, temperature=2, seed=1, max_tokens=40, response_format=wish(SCHEMA))
    texts = [choice["message"]["content"] for choice in post(address, wanted).json()["choices"]]
    assert all(isinstance(json.loads(text)["seen"], bool) for text in texts)
    assert (
        post(address, wanted | {"response_format": {"type": "json_object"}})
        .json()["choices"][0]["message"]["content"]
        .startswith("{")
    )


@pytest.mark.parametrize(
    "form",
    [
        wish({"type": "nonsense"}),
        wish({"$ref": "http://127.0.0.1:9/x"}),
        wish({"$ref": "file:///etc/passwd"}),
        wish({"type": "string", "pattern": "(" * 3000}),
        wish({"type": "string", "description": "x" * 100_000}),
        wish([]),
        wish(SCHEMA, name=""),
        wish(SCHEMA, extra=1),
        {"type": "json_schema"},
        {"type": "grammar"},
        "json",
    ],
)
def test_formats_that_are_refused(address: str, form: Any) -> None:
    reply = post(address, body(text="Hm?", response_format=form))
    assert reply.status_code == 400
    assert reply.json()["error"]["param"].startswith("response_format")


def test_schemas_that_take_hours_hold_nobody_up(address: str) -> None:
    pytest.importorskip("llguidance")
    endless = body(text="Hm?", response_format=wish({"type": "integer", "multipleOf": 99_999_989}))
    with ThreadPoolExecutor(4) as pool:
        refused = [pool.submit(post, address, endless) for _ in range(3)]  # more than there are workers
        assert post(address, body(text="Hm?")).status_code == 200
        assert {one.result().status_code for one in refused} == {400}


def test_without_the_library_it_is_said(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with served(ServeOptions()) as (other, _):
        reply = post(other, body(text="Hm?", response_format={"type": "json_object"}))
        assert reply.status_code == 400
        assert "foveate[json]" in reply.json()["error"]["message"]
        assert post(other, body(text="Hm?", response_format={"type": "text"})).status_code == 200
