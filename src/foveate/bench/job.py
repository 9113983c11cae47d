"""What a measurement is of, in values that another process can be given."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """How a process of its own gets the same model and prompt. Paths and numbers only, so that it is JSON."""

    model: str
    tokens: int | None
    image: str | None
    question: str
    batch: int
    new_tokens: int
    dtype: str
    attention: str | None
    seed: int
    threads: int
    video: str | None = None
    frames: int | None = None
