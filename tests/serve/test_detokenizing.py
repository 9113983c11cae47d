"""Pieces of text make the final text, whatever the tokens are."""

from __future__ import annotations

from random import Random

import pytest

from foveate.inference.answer import cut
from foveate.serve.detokenizing import Detokenizer
from tests.serve.live import zoo_asker

TEXTS = [
    "  The total is 7.50  ",
    "naïve café – 東京 🙂🙂 done",
    "a\n\n b \t c",
    "",
    "STOP",
    "one two STO",
    "xSTOPy STOP",
]


@pytest.mark.parametrize("stops", [(), ("STOP",), ("🙂", "total"), ("c",)])
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_make_the_text(text: str, stops: tuple[str, ...]) -> None:
    tokenizer = zoo_asker().processor.tokenizer
    ids = tokenizer(text, add_special_tokens=False).input_ids
    whole = Detokenizer(tokenizer, stops)
    pieces = []
    for token in ids:
        pieces.append(whole.add(token))
        if whole.stopped:
            break
    pieces.append(whole.finish())
    assert "".join(pieces) == whole.text == cut(tokenizer.decode(ids), stops).strip()
    assert whole.stopped == any(stop in text for stop in stops)


def test_random_tokens() -> None:
    tokenizer, random = zoo_asker().processor.tokenizer, Random(0)
    for _ in range(50):
        ids = [random.randrange(len(tokenizer)) for _ in range(30)]
        whole = Detokenizer(tokenizer)
        pieces = [whole.add(token) for token in ids]
        assert "".join([*pieces, whole.finish()]) == tokenizer.decode(ids, skip_special_tokens=True).strip()
