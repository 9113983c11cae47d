"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from foveate.serve.generation import Report
from foveate.serve.scheduler import Scheduler

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one server, in a registry of their own.

    Args:
        scheduler: whose state the gauges show.
        inside: how many requests have a place.
    """

    def __init__(self, scheduler: Scheduler, inside: Callable[[], int]) -> None:
        own = self.registry = CollectorRegistry()
        self.requests = Counter("foveate_requests", "Requests by HTTP status", ["status"], registry=own)
        self.cancelled = Counter("foveate_cancelled", "Requests whose client left", registry=own)
        self.first = Histogram(
            "foveate_time_to_first_token_seconds", "From arrival to first token", registry=own, buckets=SECONDS
        )
        self.whole = Histogram("foveate_request_seconds", "From arrival to end", registry=own, buckets=SECONDS)
        self.selecting = Histogram(
            "foveate_select_seconds", "Choosing visual tokens", registry=own, buckets=(0.0001, *SECONDS)
        )
        self.shown = Counter("foveate_visual_tokens", "Visual tokens of the prompts", registry=own)
        self.kept = Counter("foveate_visual_tokens_kept", "Of these, kept on average over the layers", registry=own)
        self.prompts = Counter("foveate_prompt_tokens", "Tokens of the unpruned prompts", registry=own)
        self.tokens = Counter("foveate_completion_tokens", "Tokens of the answers", registry=own)
        for name, text, read in (
            ("foveate_inside", "Requests that were let in: prepared, waiting or answered", inside),
            ("foveate_rows", "Answers that are being generated", lambda: scheduler.running),
            ("foveate_waiting", "Requests that wait for a place", lambda: scheduler.waiting),
            ("foveate_kv_bytes", "Keys and values held", lambda: scheduler.held_bytes),
            ("foveate_steps", "Decoding steps since the start", lambda: scheduler.steps),
        ):
            Gauge(name, text, registry=own).set_function(read)

    def begin(self, report: Report, prompt: int) -> None:
        """A prompt was read."""
        self.first.observe(report.ttft_ms / 1000)
        self.selecting.observe(report.select_ms / 1000)
        self.shown.inc(report.visual_tokens)
        self.kept.inc(report.kept_tokens)
        self.prompts.inc(prompt)

    def page(self) -> bytes:
        """Everything as Prometheus reads it."""
        return generate_latest(self.registry)
