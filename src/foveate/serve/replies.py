"""Answers in OpenAI's shapes, whole or as a stream of events."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import asdict, dataclass, field
from typing import Any

from foveate.serve.generation import Generation, Piece, Report
from foveate.serve.problems import RequestError


@dataclass
class Reply:
    """What is known of a request's answers so far.

    Attributes:
        name: of the model.
        request: that is answered.
        usage_chunk: whether a stream ends with a chunk of its own for `usage`.
    """

    name: str
    request: Generation
    usage_chunk: bool = False
    report: Report | None = None
    ended: dict[int, Piece] = field(default_factory=dict)
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def note(self, piece: Piece) -> None:
        """Remember the end of an answer."""
        if piece.finish is not None:
            self.ended[piece.number] = piece

    @property
    def is_whole(self) -> bool:
        return len(self.ended) == self.request.answers

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of the unpruned prompt, and of all answers."""
        prompt, new = self.request.length, sum(piece.tokens for piece in self.ended.values())
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    @property
    def foveate(self) -> dict[str, Any]:
        """What pruning did, and whether the time limit cut an answer."""
        assert self.report is not None
        return asdict(self.report) | {"cut_by_time": any(piece.late for piece in self.ended.values())}

    def body(self) -> dict[str, Any]:
        """The whole reply."""
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": piece.whole, "refusal": None},
                "logprobs": None,
                "finish_reason": piece.finish,
            }
            for number, piece in sorted(self.ended.items())
        ]
        return self._head("chat.completion") | {"choices": choices, "usage": self.usage, "foveate": self.foveate}

    # -- as a stream -------------------------------------------------------------------------------------

    def opening(self) -> bytes:
        """The first event: who speaks."""
        choices = [
            {"index": number, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
            for number in range(self.request.answers)
        ]
        return event(self._head("chat.completion.chunk") | {"choices": choices})

    def chunk(self, piece: Piece) -> bytes:
        """More text. The last chunk of a stream also says what pruning did."""
        delta = {"content": piece.text} if piece.text else {}
        choice = {"index": piece.number, "delta": delta, "logprobs": None, "finish_reason": piece.finish}
        found = self._head("chat.completion.chunk") | {"choices": [choice]}
        if self.is_whole and not self.usage_chunk:
            found["foveate"] = self.foveate
        return event(found)

    def closing(self) -> bytes:
        """What follows the last chunk."""
        last = b"data: [DONE]\n\n"
        if not self.usage_chunk:
            return last
        more = {"choices": [], "usage": self.usage, "foveate": self.foveate}
        return event(self._head("chat.completion.chunk") | more) + last

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.name}


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def broken(problem: RequestError) -> bytes:
    """How a stream says that it failed."""
    return event(problem.body())
