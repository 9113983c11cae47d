"""The same run with several seeds, and what they have in common: means and standard errors."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from foveate.files.atomic import write_text
from foveate.training.processes import is_first
from foveate.training.runs import SUMMARY, RunSettings

SEEDS = "seeds.json"

S = TypeVar("S", bound=RunSettings)
Metrics = Mapping[str, float]


def train_seeds(
    settings: S, seeds: int, train: Callable[[S], Metrics], check_done: Callable[[S], None]
) -> dict[str, dict[str, Any]]:
    """Train in `out/seed-N` for so many seeds, counted from the settings' own; writes and returns the summary.

    With `resume`, runs that came to their end are read and the one that was interrupted goes on.

    Args:
        check_done: refuses a finished run that was started with other settings.

    Returns:
        For each metric its `mean`, its `error` (standard error of the mean; None for a single seed) and `values`.
    """
    first = int(settings.arguments.get("seed", 0))
    results = list[Metrics]()
    for seed in range(first, first + seeds):
        arguments = settings.arguments | {"seed": seed}
        own = replace(settings, out=settings.out / f"seed-{seed}", arguments=arguments)
        done = own.out / SUMMARY
        if settings.resume and done.is_file():
            check_done(own)
            results.append(json.loads(done.read_text(encoding="utf-8"))["metrics"])
        else:
            results.append(train(own))
        gc.collect()  # trainers and their models refer to each other
    found = summary(results)
    if is_first():
        write_text(settings.out / SEEDS, json.dumps(found, indent=2) + "\n")
    return found


def summary(results: Sequence[Metrics]) -> dict[str, dict[str, Any]]:
    """Mean and standard error of every metric that all runs have, but for times."""
    names = [name for name in results[0] if all(name in one for one in results) and not _is_time(name)]
    return {name: _mean([float(one[name]) for one in results]) for name in names}


def _is_time(name: str) -> bool:
    return name.endswith(("runtime", "per_second")) or name in ("epoch", "total_flos", "eval_epoch")


def _mean(values: list[float]) -> dict[str, Any]:
    n = len(values)
    mean = sum(values) / n
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1)) if n > 1 else None
    return {"mean": mean, "error": None if spread is None else spread / math.sqrt(n), "values": values}


def lines(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """For a person: held-out metrics if there are any, else those of training."""
    names = [name for name in found if name.startswith("eval_")] or list(found)
    return [
        f"{name}: {found[name]['mean']:.4g}"
        + ("" if found[name]["error"] is None else f" ± {found[name]['error']:.2g}")
        + f" ({len(found[name]['values'])} seeds)"
        for name in names
    ]
