"""One benchmark from names and numbers: what `foveate bench` does without the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from foveate.bench import memory
from foveate.bench.job import Job
from foveate.bench.measure import Result, measure
from foveate.bench.report import report
from foveate.bench.subject import Workload, prepare
from foveate.files.environment import facts
from foveate.inference.weights import warn_if_tuned_elsewhere
from foveate.specs.settings import Setting


def calls(settings: Sequence[Setting], repeats: int, warmup: int, weigh: bool) -> int:
    """How often `on_call` of `run` will be called."""
    return len(settings) * (repeats + warmup + weigh)


def run(
    job: Job,
    settings: Sequence[Setting],
    repeats: int = 5,
    warmup: int = 2,
    weigh: bool = True,
    device: str | None = None,
    command: str = "",
    on_call: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Measure every setting and return the report (see `report.py`).

    Args:
        settings: the first is the reference (`grid` puts the unpruned model there).
        weigh: measure peak memory too; on a CPU that starts a process per setting.
        command: how to repeat it, for the report.
    """
    torch.manual_seed(job.seed)
    workload = prepare(job, device)
    for setting in settings:
        warn_if_tuned_elsewhere(setting.name, setting.evidence, workload.model)
    results = measure(workload.model, workload.inputs, settings, job.new_tokens, repeats, warmup, on_call)
    if weigh:
        _weigh(workload, job, results, on_call)
    run = asdict(job) | {"prompt": workload.prompt, "repeats": repeats, "warmup": warmup, "command": command}
    return report(results, facts(workload.model), run)


def _weigh(workload: Workload, job: Job, results: Sequence[Result], on_call: Callable[[], None]) -> None:
    settings = [result.setting for result in results]
    if next(workload.model.parameters()).device.type == "cuda":
        for result in results:
            result.peak_bytes = memory.cuda_peak(workload.model, workload.inputs, result.setting.make(), job.new_tokens)
            result.peak_kind = memory.CUDA
            on_call()
        return
    for result, peak in zip(results, memory.process_peaks(job, settings, on_call), strict=True):
        result.peak_bytes, result.peak_kind = peak, memory.PROCESS
