"""A language model as judge, behind any OpenAI-compatible endpoint. It is never asked the same thing twice."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from foveate.errors import ConfigurationError, FoveateError
from foveate.glimpse.rewards import parse_judge_score

PROMPT = """You grade an answer to a question about an image that you cannot see. Compare it with the reference.

Question: {question}
Reference answer: {answer}
Answer to grade: {completion}

1 means the same in substance, 0 means wrong, values between them partly right. Reply with one line:
score: <number from 0 to 1>"""


class JudgeError(FoveateError, RuntimeError):
    """The judge cannot be reached, or refuses to work."""


@dataclass
class Judge:
    """Scores answers in [0, 1].

    Args:
        model, base_url: what to ask, and where (`http://localhost:8000/v1`).
        api_key: default is the environment's `OPENAI_API_KEY` (local servers take anything).
        timeout: seconds a request may take; it is repeated `retries` times, waiting longer each time.
        attempts: how often to ask again for a reply without exactly one score, before that answer stays unscored.
        patience: seconds to wait for a judge that is down before giving up (the run can be resumed then).
        cache: SQLite file of replies.
        prompt: with `{question}`, `{answer}`, `{completion}`.
        workers: requests at a time.
    """

    model: str
    base_url: str
    api_key: str | None = None
    timeout: float = 30.0
    retries: int = 3
    attempts: int = 3
    patience: float = 3600.0
    cache: Path | None = None
    prompt: str = PROMPT
    workers: int = 8
    sleep: Callable[[float], None] = time.sleep
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        try:
            import openai
        except ImportError as error:
            raise ConfigurationError("An LLM judge needs the `train` extra: pip install 'foveate[train]'.") from error
        key = self.api_key or os.environ.get("OPENAI_API_KEY") or "none"
        self._client = openai.OpenAI(
            base_url=self.base_url, api_key=key, timeout=self.timeout, max_retries=self.retries
        )
        if self.cache is not None:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
        self._replies = sqlite3.connect(self.cache or ":memory:", check_same_thread=False)
        with self._replies:
            self._replies.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, score REAL, reply TEXT)")

    def scores(self, items: Sequence[tuple[str, str, str]]) -> list[float | None]:
        """Score of each (question, reference answer, completion); None where no reply held exactly one score.

        Raises:
            JudgeError: the judge stayed unreachable for `patience` seconds, or refuses the request.
        """
        distinct = list(dict.fromkeys(items))
        with ThreadPoolExecutor(max(1, min(self.workers, len(distinct)))) as pool:
            found = dict(zip(distinct, pool.map(self._score, distinct), strict=True))
        return [found[item] for item in items]

    def _score(self, item: tuple[str, str, str]) -> float | None:
        question, answer, completion = item
        text = self.prompt.format(question=question, answer=answer, completion=completion)
        key = hashlib.sha256(json.dumps([self.base_url, self.model, text]).encode()).hexdigest()
        with self._lock:
            known = self._replies.execute("SELECT score FROM replies WHERE key = ?", (key,)).fetchone()
        if known is not None:
            return float(known[0])
        for attempt in range(self.attempts):
            reply = self._ask(text, temperature=0.0 if attempt == 0 else 0.7)  # the same again would not help
            score = parse_judge_score(reply)
            if score is not None:
                with self._lock, self._replies:
                    self._replies.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?)", (key, score, reply))
                return score
        return None

    def _ask(self, text: str, temperature: float) -> str:
        """One reply; waits while the judge is down."""
        import openai

        began, wait = time.monotonic(), 5.0
        passing = (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError)
        while True:
            try:
                reply = self._client.chat.completions.create(
                    model=self.model, messages=[{"role": "user", "content": text}], temperature=temperature
                )
                return (reply.choices[0].message.content if reply.choices else None) or ""
            except passing as error:
                left = self.patience - (time.monotonic() - began)
                if left <= 0:
                    raise JudgeError(
                        f"the judge at {self.base_url} did not answer for {self.patience:.0f} s ({error}). Bring it "
                        "back and go on with --resume; no reward was given for what it has not judged."
                    ) from error
                Console(stderr=True).print(f"judge at {self.base_url}: {error}. The run waits {wait:.0f} s for it.")
                self.sleep(min(wait, left))
                wait = min(2 * wait, 300.0)
            except openai.APIError as error:
                raise JudgeError(f"the judge at {self.base_url} refuses model {self.model!r}: {error}") from error

    def close(self) -> None:
        """Close the cache and the connection."""
        self._replies.close()
        self._client.close()
