"""What a client is told when a request cannot be answered: OpenAI's error shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from foveate.errors import FoveateError

KINDS = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "server_error",
}


class RequestError(FoveateError):
    """A request that is refused, or that failed.

    Remedy: change the field that is named in `param`, or ask again after `Retry-After`.

    Args:
        message: for the client: what is wrong, where, and the remedy.
        status: HTTP status.
        param: the field that is at fault, as a path (`messages.0.content`).
        code: a short name that programs can compare.
        retry_after: seconds after which the same request may be accepted.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    def body(self) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`."""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> Mapping[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def invalid(error: ValidationError) -> RequestError:
    """The first thing that a body is refused for; what the client sent is not repeated."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(step for step in map(str, first["loc"]) if not step.startswith("<"))  # what it was taken for
    more = error.error_count() - 1
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "this field is not known here; remove it"
    elif first["type"] == "union_tag_invalid":
        message = f"its type is none of {first['ctx']['expected_tags']}"
    elif first["type"] == "union_tag_not_found":
        message = "it needs a type"
    text = f"{where}: {message}" if where else message
    return RequestError(f"{text}{f' (and {more} more)' if more else ''}", param=where or None, code=first["type"])


def of(error: BaseException) -> RequestError:
    """What the client is told about an exception; details of faults that are ours stay in the log."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, FoveateError):
        return RequestError(str(error))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return RequestError("The server ran out of memory; try again, or send less.", 503, retry_after=5)
    return RequestError("The server failed on this request; its log says why.", 500)
