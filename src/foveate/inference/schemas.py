"""Answers that are JSON of a given schema: tokens that would leave it are never chosen.

Which tokens may follow is llguidance's to say; here its answers meet logits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from foveate.errors import MissingExtraError, SchemaError
from foveate.inference.trials import check_compiles

LONGEST = 65_536
"""Characters of a schema."""
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


class JsonRow:
    """One answer while it grows.

    Args:
        matcher: llguidance's, in its first state; used up.
        ends: tokens that end an answer.
    """

    def __init__(self, matcher: Any, ends: Sequence[int]) -> None:
        self._matcher, self._ends = matcher, list(ends)
        self._ended = False

    def allow(self, scores: Tensor) -> Tensor:
        """Scores `[V]` with minus infinity for tokens that must not come next; unchanged once the answer has ended.

        Raises:
            SchemaError: the schema needs more work than llguidance does for one token.
        """
        if self._ended:
            return scores
        allowed = torch.zeros(len(scores), dtype=torch.bool)
        if self._matcher.is_stopped() and not self._matcher.is_error():  # the document is whole
            allowed[self._ends] = True
        else:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            known = torch.from_numpy(np.unpackbits(bits, bitorder="little")[: len(scores)].astype(bool))
            allowed[: len(known)] = known
        if self._matcher.is_error():
            raise SchemaError(f"The schema cannot be followed: {_first(self._matcher.get_error())}")
        return scores.masked_fill(~allowed.to(scores.device), float("-inf"))

    def take(self, token: int) -> None:
        """This token was chosen."""
        self._ended = self._ended or token in self._ends
        if not self._ended and not self._matcher.is_stopped():
            self._matcher.consume_token(token)


class JsonSchema:
    """A schema that answers of one model follow.

    Args:
        matcher: llguidance's, in its first state.
        ends: tokens that end an answer.
    """

    def __init__(self, matcher: Any, ends: Sequence[int]) -> None:
        self._matcher, self._ends = matcher, tuple(ends)

    def row(self) -> JsonRow:
        """For one answer."""
        return JsonRow(self._matcher.deep_copy(), self._ends)

    def processor(self) -> LogitsProcessor:
        """For one call of `generate`, without beams."""
        return _SchemaProcessor(self)


class _SchemaProcessor(LogitsProcessor):
    """The rows of one call of `generate`."""

    def __init__(self, schema: JsonSchema) -> None:
        self._schema, self._rows = schema, list[JsonRow]()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._rows:
            for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
                row.take(token)
        else:
            self._rows = [self._schema.row() for _ in range(len(scores))]
        return torch.stack([row.allow(own) for row, own in zip(self._rows, scores, strict=True)])


class SchemaCompiler:
    """Makes schemas for one model; knows its vocabulary.

    Args:
        tokenizer: a fast one.
        vocabulary: width of the model's logits.
        ends: tokens that end an answer.

    Raises:
        MissingExtraError: llguidance is not installed.
        SchemaError: a tokenizer that it cannot read.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, ends: Iterable[int]) -> None:
        try:
            from llguidance import hf
        except ImportError as error:
            raise MissingExtraError("Answers by a JSON schema need llguidance: pip install 'foveate[json]'.") from error
        self._ends = sorted(ends)
        try:
            self._tokenizer = hf.from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=self._ends)
        except ValueError as error:
            raise SchemaError(f"This model's tokenizer does not work with JSON schemas: {error}") from error

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> SchemaCompiler:
        """For a model, whose answers end as its `generation_config` says."""
        ends = model.generation_config.eos_token_id
        given = [ends] if isinstance(ends, int) else list(ends or [tokenizer.eos_token_id])
        return cls(tokenizer, model.config.get_text_config().vocab_size, given)

    def compile(self, schema: Mapping[str, Any]) -> JsonSchema:
        """Check a schema and make it ready. Nothing that it refers to is fetched.

        Raises:
            SchemaError: no schema, one with parts that cannot be followed (never ignored in silence), or one that takes
                too long to make ready.
        """
        from llguidance import LLMatcher

        try:
            text = json.dumps(schema)
        except (RecursionError, ValueError, TypeError) as error:
            raise SchemaError("The schema is nested too deeply, or is no JSON.") from error
        if len(text) > LONGEST:
            raise SchemaError(f"The schema has {len(text):,} characters; the limit is {LONGEST:,}.")
        try:  # one way to write white space: a model could go on with it for ever
            grammar = LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_flexible": False})
        except ValueError as error:
            raise SchemaError(f"No JSON schema: {_first(str(error))}") from error
        check_compiles(grammar)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise SchemaError(f"The schema cannot be followed: {_first(matcher.get_error())}")
        return JsonSchema(matcher, self._ends)


def read_schema(text: str) -> Mapping[str, Any]:
    """A schema written as JSON.

    Raises:
        SchemaError: no JSON object.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"The schema is no JSON that can be read: {error}") from error
    if not isinstance(found, dict):
        raise SchemaError("The schema is no JSON object.")
    return found


def _first(text: str) -> str:
    """Its first line, not too long: errors repeat what they were given."""
    return text.strip().partition("\n")[0][:200]
