"""Interleaved timing: every setting once per round, so that a slow minute hits all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from foveate.bench.flops import Flops, count, vision_flops
from foveate.bench.own_work import own_flops
from foveate.core.method import Method
from foveate.engine.attach import prune
from foveate.families import adapt
from foveate.families.geometry import Geometry
from foveate.specs.settings import Setting
from foveate.trace.records import PrefillTrace

TIMES = {
    "vision_ms": "vision tower, what a method reads there included",
    "select_ms": "choosing and gathering tokens, inside the prefill",
    "prefill_ms": "the language model's decoder layers over the prompt, selection included",
    "first_token_ms": "from calling generate to the first token",
    "decode_ms": "per further token",
    "total_ms": "from calling generate to its return",
}
"""Measured times in milliseconds for the whole batch; keys of `Result.times`."""


class Clock(BaseStreamer):
    """Notes when each token arrives on the host (which waits for the device)."""

    def __init__(self) -> None:
        self.arrivals: list[float] = []

    def put(self, value: Tensor) -> None:
        self.arrivals.append(time.perf_counter())

    def end(self) -> None:
        pass


@dataclass
class Result:
    """Everything measured for one setting.

    Attributes:
        times: per name of `TIMES`, one value per round.
        trace: of the last prefill.
        flops: analytic operations of one call, without the method's own.
        own_flops: what the method itself computes in a call.
        peak_bytes: peak memory of a call (see `memory.py`), or None if it was not weighed.
        peak_kind: what `peak_bytes` counts.
    """

    setting: Setting
    description: str
    times: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in TIMES})
    trace: PrefillTrace | None = None
    flops: Flops | None = None
    own_flops: int = 0
    peak_bytes: int | None = None
    peak_kind: str | None = None

    def add(self, times: dict[str, float], trace: PrefillTrace) -> None:
        """Note a round."""
        for name, value in times.items():
            self.times[name].append(value)
        self.trace = trace

    def median(self, name: str) -> float:
        return statistics.median(self.times[name])

    @property
    def last(self) -> PrefillTrace:
        assert self.trace is not None, "read before measured"
        return self.trace


def measure(
    model: Any,
    inputs: dict[str, Tensor],
    settings: Sequence[Setting],
    new_tokens: int = 16,
    repeats: int = 5,
    warmup: int = 2,
    on_call: Callable[[], None] = lambda: None,
) -> list[Result]:
    """Time `generate` for every setting; the first setting is the reference.

    Args:
        inputs: model inputs, one image prompt per row.
        new_tokens: exactly this many tokens are generated per row.
        repeats: measured rounds. Within a round every setting runs once; the order rotates.
        warmup: rounds before that, not counted.
        on_call: told after every call of `generate`.

    Raises:
        UnsupportedModelError: the operations of such a model cannot be counted.
    """
    family = adapt(model)
    geometry, vision = Geometry.of(family), vision_flops(family, inputs)
    methods = [setting.make() for setting in settings]
    results = [Result(setting, setting.describe()) for setting in settings]
    order = list(range(len(settings)))
    for number in order * warmup:
        timed_call(model, inputs, methods[number], new_tokens)
        on_call()
    for _ in range(repeats):
        for number in order:
            results[number].add(*timed_call(model, inputs, methods[number], new_tokens))
            on_call()
        order = order[1:] + order[:1]
    for result, method in zip(results, methods, strict=True):
        in_tower = method is not None and method.prunes and bool(method.tower_stages(family.info))
        own = vision_flops(family, inputs, result.last) if in_tower else vision
        result.flops = count(geometry, result.last, new_tokens, own)
        result.own_flops = own_flops(model, inputs, method)
    return results


def timed_call(
    model: Any, inputs: dict[str, Tensor], method: Method | None, new_tokens: int
) -> tuple[dict[str, float], PrefillTrace]:
    """Times of one call and its trace; the device is idle before and after."""
    clock = Clock()
    gc.collect()
    with prune(model, method) as trace, torch.inference_mode():
        synchronise(model)
        started = time.perf_counter()
        model.generate(
            **inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, num_beams=1, streamer=clock
        )
        synchronise(model)
        ended = time.perf_counter()
    _, first, *rest = clock.arrivals  # the prompt comes through the streamer too
    last = trace.last
    times = {
        "vision_ms": last.vision.ms,
        "select_ms": last.selecting.ms,
        "prefill_ms": last.prefill.ms,
        "first_token_ms": 1000 * (first - started),
        "decode_ms": 1000 * (rest[-1] - first) / len(rest) if rest else 0.0,
        "total_ms": 1000 * (ended - started),
    }
    return times, last


def synchronise(model: Any) -> None:
    """Wait for the device, so that the clock measures work and not its launch."""
    if next(model.parameters()).device.type != "cpu":
        torch.accelerator.synchronize()
