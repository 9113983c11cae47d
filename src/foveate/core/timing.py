"""Time that is right on asynchronous devices and costs nothing until it is read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Sums the time of several spans; on CUDA with events, so that nothing waits while measuring."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def span(self, device: torch.device) -> Iterator[None]:
        stop = self.start(device)
        try:
            yield
        finally:
            self.stop(stop)

    def start(self, device: torch.device) -> float | torch.cuda.Event:
        if device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event

    def stop(self, started: float | torch.cuda.Event) -> None:
        if isinstance(started, float):
            self._seconds += time.perf_counter() - started
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append((started, event))

    @property
    def ms(self) -> float:
        """Milliseconds in all spans so far; waits for the device."""
        for first, last in self._events:
            last.synchronize()
            self._seconds += first.elapsed_time(last) / 1000
        self._events.clear()
        return self._seconds * 1000
