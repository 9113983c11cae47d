"""One question answered twice, piece by piece: by the stock model, then pruned."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from foveate.core.method import Method
from foveate.engine import attach as engine
from foveate.errors import FoveateError, InputError
from foveate.inference.answer import Answer, Asker
from foveate.methods import registry
from foveate.specs.choose import choose_method
from foveate.trace.records import PrefillTrace

READINGS = 3
"""Of each prompt, for times: one alone says little on a machine that does other things too."""


@dataclass(frozen=True)
class Side:
    """One of the two answers, as far as it has come.

    Attributes:
        name: of the method, or `unpruned`.
        text: so far.
        answer: the whole, when it has come.
        decode_ms: from the first token to the end of the answer.
        readings: of the prompt again, at the very end.
    """

    name: str
    text: str = ""
    answer: Answer | None = None
    decode_ms: float = 0.0
    readings: tuple[PrefillTrace, ...] = ()


def compare(asker: Asker, image: Image.Image, question: str, method: Method) -> Iterator[tuple[Side, Side]]:
    """Both sides again with every piece that comes, and once more with readings of the prompt, taken in turns.

    The two run one after the other, or each would slow the other. Readings come after the answers, so that none is the
    first of its shape and nobody waits for them.

    Raises:
        FoveateError: the question cannot be asked, or the method not be used.
    """
    if not question.strip():
        raise InputError("Write a question about the picture.")
    inputs = asker.questions([([image], question)])
    stock, pruned = Side("unpruned"), Side(method.name)
    yield stock, pruned
    for side in _answer(asker, inputs, None, stock):
        stock = side
        yield stock, pruned
    for side in _answer(asker, inputs, method, pruned):
        pruned = side
        yield stock, pruned
    pairs = [
        [asker.answer(inputs, one, max_new_tokens=1)[0].prefill for one in (None, method)] for _ in range(READINGS)
    ]
    first, second = zip(*pairs, strict=True)
    yield replace(stock, readings=first), replace(pruned, readings=second)


def _answer(asker: Asker, inputs: dict[str, Any], method: Method | None, side: Side) -> Iterator[Side]:
    begun = time.perf_counter()
    stream = asker.stream(inputs, method)
    for piece in stream:
        side = replace(side, text=side.text + piece)
        yield side
    answer = stream.answer
    after = (time.perf_counter() - begun) * 1000 - answer.prefill.first_token_ms
    yield replace(side, text=answer.text, answer=answer, decode_ms=max(0.0, after))


def choices(asker: Asker, model: str) -> list[str]:
    """Names of the methods that this model can be asked under, with a keep and no further parameters."""
    found = []
    for name in registry():
        try:
            with engine.prune(asker.model, choose_method(name, keep=0.5, model=model)):
                found.append(name)
        except (FoveateError, TypeError):
            continue
    return found
