"""Answers that follow a JSON schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

pytest.importorskip("llguidance", reason="needs the extra `json`")

from transformers import LogitsProcessorList

from foveate.errors import SchemaError
from foveate.inference.answer import Asker
from foveate.inference.schemas import ANY_OBJECT, LONGEST, JsonSchema, SchemaCompiler, read_schema
from foveate.methods import make
from foveate.scenes.splits import load
from foveate.zoo import DEFAULT

COLOURS = ("red", "green", "blue", "yellow")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 9}, "colour": {"enum": list(COLOURS)}},
    "required": ["count", "colour"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def asker() -> Asker:
    return Asker.load(DEFAULT, device="cpu")


@pytest.fixture(scope="module")
def compiler(asker: Asker) -> SchemaCompiler:
    return SchemaCompiler.of(asker.model, asker.processor.tokenizer)


def ask(asker: Asker, schema: JsonSchema, count: int, **more: Any) -> list[Any]:
    inputs = asker.questions([(sample.images, sample.question) for sample in load("test", count)])
    processors = LogitsProcessorList([schema.processor()])
    return asker.answer(inputs, make("vitcop", keep=1 / 3), logits_processor=processors, max_new_tokens=60, **more)


@pytest.mark.parametrize("drawn", [{}, {"do_sample": True, "temperature": 2.0, "top_k": 0}])
def test_answers_follow_the_schema(asker: Asker, compiler: SchemaCompiler, drawn: dict[str, Any]) -> None:
    torch.manual_seed(0)
    for answer in ask(asker, compiler.compile(SCHEMA), 5, **drawn):
        found = json.loads(answer.text)
        assert found.keys() == {"count", "colour"}
        assert found["count"] in range(10)
        assert found["colour"] in COLOURS
        assert answer.stop == "end"


def test_rows_of_a_batch_do_not_meet(asker: Asker, compiler: SchemaCompiler) -> None:
    together = ask(asker, compiler.compile(SCHEMA), 4)
    alone = [
        asker.answer(
            asker.questions([(sample.images, sample.question)]),
            make("vitcop", keep=1 / 3),
            logits_processor=LogitsProcessorList([compiler.compile(SCHEMA).processor()]),
            max_new_tokens=60,
        )[0]
        for sample in load("test", 4)
    ]
    assert [one.text for one in together] == [one.text for one in alone]


def test_what_the_model_would_say_anyway_is_untouched(asker: Asker, compiler: SchemaCompiler) -> None:
    """Scores of allowed tokens are not moved, and the end is allowed exactly when the answer may end."""
    scores = torch.randn(asker.model.config.get_text_config().vocab_size)
    row, ends = compiler.compile({"enum": ["ab"]}).row(), asker.model.generation_config.eos_token_id
    tokenizer, said = asker.processor.tokenizer, ""
    for _ in range(20):
        allowed = row.allow(scores)
        open_ = torch.isfinite(allowed)
        assert torch.equal(allowed[open_], scores[open_])
        token = int(allowed.argmax())
        row.take(token)
        if token == ends:
            break
        assert not open_[ends] or said == '"ab"'
        said += tokenizer.decode([token])
    assert said == '"ab"'
    assert torch.equal(row.allow(scores), scores)  # padding behind the end


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"type": "string", "format": "weird"},
        {"type": "string", "pattern": "(("},
        {"not": {"type": "string"}},
        {"$ref": "http://127.0.0.1:9/x.json"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "#/nothing"},
        {"type": "string", "description": "x" * LONGEST},
        [],
    ],
)
def test_what_cannot_be_followed_is_refused(compiler: SchemaCompiler, schema: Any) -> None:
    with pytest.raises(SchemaError):
        compiler.compile(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 99_999_989},
        {"allOf": [{"type": "integer", "multipleOf": 997}, {"type": "integer", "multipleOf": 991}]},
        {"allOf": [{"type": "string", "pattern": f"^.*a.{{{n}}}$"} for n in range(10, 60)]},
    ],
)
def test_what_would_take_hours_is_refused_in_seconds(compiler: SchemaCompiler, schema: Any) -> None:
    with pytest.raises(SchemaError, match="takes more than 2 seconds"):
        compiler.compile(schema)


def test_a_schema_has_no_say_in_how_it_is_read(compiler: SchemaCompiler) -> None:
    white = compiler.compile({**ANY_OBJECT, "x-guidance": {"whitespace_flexible": True}}).row()
    for token in compiler._tokenizer.tokenize_str("{"):
        white.take(token)
    allowed = torch.isfinite(white.allow(torch.zeros(compiler._tokenizer.vocab_size)))
    assert not any(allowed[token] for token in compiler._tokenizer.tokenize_str("\n"))


def test_text_that_is_no_schema() -> None:
    for text in ("", "{", "[]", "3", "[" * 100_000):
        with pytest.raises(SchemaError):
            read_schema(text)
