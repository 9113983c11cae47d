"""Text of an answer while it grows: whole characters, cut before stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foveate.inference.answer import cut

UNFINISHED = "\ufffd"


class Detokenizer:
    """Turns the tokens of one answer into text, piece by piece. The pieces together are the final text: without
    special tokens and surrounding space, cut before the first stop string.

    Args:
        tokenizer: read only.
        stops: strings that end the answer.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self.tokens: list[int] = []
        self._text = ""  # of whole characters so far, uncut
        self._start = self._read = 0  # tokens that the next piece is spelled with, and those that are in `_text`
        self._given = 0  # characters of the final text handed out
        self.stopped = False

    def add(self, token: int) -> str:
        """One more token; returns the text that is now certain. Sets `stopped` when a stop string is whole."""
        self.tokens.append(token)
        before = self._decode(self.tokens[self._start : self._read])
        now = self._decode(self.tokens[self._start :])
        if len(now) <= len(before) or now.endswith(UNFINISHED):
            return ""
        self._text += now[len(before) :]
        self._start, self._read = self._read, len(self.tokens)
        short = cut(self._text, self._stops)
        self.stopped = len(short) < len(self._text)
        held = 0 if self.stopped else max((_overlap(self._text, stop) for stop in self._stops), default=0)
        return self._hand_out(short[: len(short) - held].strip())

    def finish(self) -> str:
        """What is left when no more tokens come."""
        return self._hand_out(self.text)

    @property
    def text(self) -> str:
        """The whole answer."""
        return cut(self._decode(self.tokens), self._stops).strip()

    def _hand_out(self, text: str) -> str:
        piece = text[self._given :]
        self._given = max(self._given, len(text))
        return piece

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
