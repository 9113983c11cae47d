"""A language model as judge, behind any OpenAI-compatible endpoint. It is never asked the same thing twice."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from foveate.errors import ConfigurationError, FoveateError
from foveate.scoring.replies import judge_score

PROMPT = """You grade an answer to a question about an image that you cannot see. Compare it with the reference.

Question: {question}
Reference answer: {answer}
Answer to grade: {completion}

1 means the same in substance, 0 means wrong, values between them partly right. Reply with one line:
score: <number from 0 to 1>"""


class JudgeError(FoveateError, RuntimeError):
    """The judge cannot be reached, or refuses to work.

    Remedy: check `--judge-url`, `--judge-model` and `OPENAI_API_KEY`, then go on with `--resume`; nothing is judged
    twice.
    """


@dataclass
class Judge:
    """Scores answers in [0, 1].

    Args:
        model, base_url: what to ask, and where (`http://localhost:8000/v1`).
        api_key: default is the environment's `OPENAI_API_KEY` (local servers take anything).
        timeout: seconds a request may take; it is repeated `retries` times, waiting longer each time.
        attempts: how often to ask for a reply with exactly one score from 0 to 1, before that answer stays unscored.
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
    _lock: Any = field(default_factory=threading.Lock, repr=False)
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)
    _down_since: float | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        try:
            import openai
        except ImportError as error:
            raise ConfigurationError("An LLM judge needs the `train` extra: pip install 'foveate[train]'.") from error
        try:
            self.prompt.format(question="", answer="", completion="")
        except (KeyError, IndexError, ValueError) as error:
            raise ConfigurationError(
                "the judge's prompt has a placeholder that is not {question}, {answer} or {completion} "
                f"({error}); write other braces twice"
            ) from error
        key = self.api_key or os.environ.get("OPENAI_API_KEY") or "none"
        self._client = openai.OpenAI(
            base_url=self.base_url, api_key=key, timeout=self.timeout, max_retries=self.retries
        )
        if self.cache is not None:
            Path(self.cache).parent.mkdir(parents=True, exist_ok=True)
        self._replies = sqlite3.connect(  # other processes write to it too
            self.cache or ":memory:", timeout=60.0, check_same_thread=False
        )
        with self._replies:
            self._replies.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, score REAL, reply TEXT)")

    def scores(self, items: Sequence[tuple[str, str, str]]) -> list[float | None]:
        """Score of each (question, reference answer, completion); None where no reply held exactly one from 0 to 1.

        Raises:
            JudgeError: the judge stayed unreachable for `patience` seconds, or refuses the request.
        """
        distinct = list(dict.fromkeys(items))
        self._stop.clear()
        self._down_since = None
        with ThreadPoolExecutor(max(1, min(self.workers, len(distinct)))) as pool:
            try:
                found = dict(zip(distinct, pool.map(self._score, distinct), strict=True))
            finally:
                self._stop.set()  # after an error, or Ctrl-C, nobody waits on
        return [found[item] for item in items]

    def _score(self, item: tuple[str, str, str]) -> float | None:
        question, answer, completion = item
        text = self.prompt.format(question=question, answer=answer, completion=completion)
        key = hashlib.sha256(json.dumps([self.base_url, self.model, text]).encode()).hexdigest()
        with self._lock:
            known = self._replies.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        if known is not None and (score := judge_score(known[0])) is not None:  # read anew: the rules may have changed
            return score
        for attempt in range(self.attempts):
            reply = self._ask(text, temperature=0.0 if attempt == 0 else 0.7)  # the same again would not help
            score = judge_score(reply)
            if score is not None:
                with self._lock, self._replies:
                    self._replies.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?)", (key, score, reply))
                return score
        return None

    def _ask(self, text: str, temperature: float) -> str:
        """One reply; waits while the judge is down. Empty if it refuses this text."""
        import openai

        wait = 5.0
        passing = (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError)
        while True:
            try:
                reply = self._client.chat.completions.create(
                    model=self.model, messages=[{"role": "user", "content": text}], temperature=temperature
                )
            except passing as error:
                self._wait(wait, error)
                wait = min(2 * wait, 300.0)
            except openai.BadRequestError as error:  # too long, or filtered: about this text, not about the judge
                _say(f"judge: {error}")
                return ""
            except openai.APIError as error:
                raise JudgeError(f"the judge at {self.base_url} refuses model {self.model!r}: {error}") from error
            else:
                self._down_since = None
                if not hasattr(reply, "choices"):
                    raise JudgeError(f"{self.base_url} is no OpenAI-compatible endpoint (they usually end in /v1)")
                return (reply.choices[0].message.content if reply.choices else None) or ""

    def _wait(self, seconds: float, error: Exception) -> None:
        """Pause of one request; the judge may be down for `patience` seconds, however many requests wait."""
        with self._lock:
            now = time.monotonic()
            self._down_since = now if self._down_since is None else self._down_since
            left = self.patience - (now - self._down_since)
        if left <= 0 or self._stop.is_set():
            raise JudgeError(
                f"the judge at {self.base_url} did not answer for {self.patience:.0f} s ({error}). Bring it back and "
                "go on with --resume; no reward was given for what it has not judged."
            ) from error
        _say(f"judge at {self.base_url}: {error}. The run waits {min(seconds, left):.0f} s for it.")
        self._stop.wait(min(seconds, left))

    def close(self) -> None:
        """Close the cache and the connection."""
        self._replies.close()
        self._client.close()


def _say(text: str) -> None:
    Console(stderr=True).print(text, markup=False, emoji=False, highlight=False)
