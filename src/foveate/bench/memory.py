"""Peak memory: the allocator's on CUDA, a fresh process's on a CPU."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.bench.job import Job
from foveate.bench.subject import prepare
from foveate.core.method import Method
from foveate.errors import FoveateError
from foveate.inference.answer import generate
from foveate.specs.settings import Setting

CUDA = "CUDA allocator: most bytes allocated at once during generate, weights included"
PROCESS = "most resident memory of a fresh process during generate, weights and libraries included"


class MeasurementError(FoveateError, RuntimeError):
    """A measurement did not come to its end.

    Remedy: read what the process said; `--no-memory` measures without it.
    """


def cuda_peak(model: Any, inputs: dict[str, Tensor], method: Method | None, new_tokens: int) -> int:
    """Peak bytes of PyTorch's allocator over all devices during one call."""
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    torch.cuda.empty_cache()
    for device in devices:
        torch.cuda.reset_peak_memory_stats(device)
    generate(model, inputs, method, max_new_tokens=new_tokens, min_new_tokens=new_tokens)
    return sum(torch.cuda.max_memory_allocated(device) for device in devices)


def process_peaks(job: Job, settings: Sequence[Setting], on_done: Callable[[], None] = lambda: None) -> list[int]:
    """Peak resident bytes of one fresh process per setting.

    Raises:
        MeasurementError: a process failed; its last words are in the message.
    """
    peaks = []
    for setting in settings:
        task = json.dumps({"job": asdict(job), "setting": asdict(setting)})
        process = subprocess.run(
            [sys.executable, "-m", "foveate.bench.memory"], input=task, capture_output=True, text=True, check=False
        )
        if process.returncode != 0:
            words = process.stderr.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
            raise MeasurementError(
                f"Weighing '{setting.name}' in a fresh process failed: {words[0]} Use --no-memory to leave it out."
            )
        peaks.append(int(process.stdout.strip().splitlines()[-1]))
        on_done()
    return peaks


def _weigh(task: dict[str, Any]) -> int:
    job, setting = Job(**task["job"]), Setting(**task["setting"])
    torch.set_num_threads(job.threads)
    workload = prepare(job)
    _forget_peak()  # loading needs more than running: what matters is the call
    exactly = {"max_new_tokens": job.new_tokens, "min_new_tokens": job.new_tokens}
    generate(workload.model, workload.inputs, setting.make(), **exactly)
    return _peak()


def _forget_peak() -> None:
    with contextlib.suppress(OSError):  # Linux only; elsewhere loading counts too
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Highest resident bytes; on Linux not `ru_maxrss`, which a child inherits from its parent."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    print(_weigh(json.load(sys.stdin)))
