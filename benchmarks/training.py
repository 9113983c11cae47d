"""Peak memory and time of a training step of a glimpse module: a fresh process each.

    python benchmarks/training.py                         # distillation and boxes, stored and checkpointed
    python benchmarks/training.py --before OTHER/src      # the same beside an earlier source tree

Random weights (`mid-qwen2.5-vl`, float32), one picture of so many visual tokens, an answer of four. Prints what a step
(forward and backward) takes beyond what was resident before it, next to the formula's estimate, and the fastest of
some steps. With `--before`, rounds alternate between the two sources.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

MIB = 1024**2
KINDS = ("distill", "distill checkpointed", "boxes", "look")


def resident(name: str) -> int:
    """Bytes, from the kernel: `VmRSS` now, `VmHWM` the most since `forget`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def forget() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def weigh(task: dict[str, Any]) -> dict[str, float]:
    """Extra bytes and seconds of a step, in this process."""
    from foveate.families import presets, prompts
    from foveate.glimpse import GlimpseModule
    from foveate.training.glimpse.model import GlimpseForTraining
    from foveate.training.glimpse.objectives import Objective

    torch.set_num_threads(1)
    kind, tokens = task["kind"], task["tokens"]
    model = presets.build(task["model"], tokens)
    batch = prompts.random_prompt(model, tokens)
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    batch["labels"][:, -4:] = batch["input_ids"][:, -4:]
    distill = Objective(localization=0, language=0, distillation=1.0)
    objective = {"boxes": Objective(), "look": Objective(language=0)}.get(kind, distill)
    masks = [torch.arange(tokens) % 7 == 0] if objective.uses_boxes else None
    with GlimpseForTraining(model, GlimpseModule.for_model(model), objective) as training:
        if kind.endswith("checkpointed"):
            training.activation_checkpointing_enable()
        training.train()
        seconds, extra = list[float](), 0
        for _ in range(task["steps"]):
            before = resident("VmRSS")
            forget()
            start = time.perf_counter()
            training(masks, **batch)["loss"].backward()
            seconds.append(time.perf_counter() - start)
            extra = extra or resident("VmHWM") - before  # later steps find memory that the first one left
        found = {"extra": extra, "seconds": min(seconds)}
        if task["estimate"]:
            from foveate.training.memory import estimate

            cost = estimate(training, rows=1, length=batch["input_ids"].shape[1])
            found["formula"] = cost.step(checkpointed=kind.endswith("checkpointed"))
        return found


def measured(task: dict[str, Any], source: str | None) -> dict[str, float]:
    own = os.environ if source is None else os.environ | {"PYTHONPATH": source}
    command = [sys.executable, __file__, "--one", json.dumps(task | {"estimate": source is None})]
    done = subprocess.run(command, capture_output=True, text=True, env=own, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mid-qwen2.5-vl")
    parser.add_argument("--tokens", type=int, default=2304)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--before", metavar="SRC", help="source tree of another version, to compare with")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(weigh(json.loads(given.one))))
        return
    for kind in given.kinds:
        task = {"model": given.model, "tokens": given.tokens, "kind": kind, "steps": given.steps}
        sources = [None] if given.before is None else [given.before, None]
        for source in sources * given.rounds:
            found = measured(task, source)
            formula = f", formula {found['formula'] / MIB:.0f} MiB" if "formula" in found else ""
            name = "now" if source is None else "before"
            print(f"{kind:22} {name:7} {found['extra'] / MIB:6.0f} MiB extra{formula}, {found['seconds']:.2f} s a step",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
