"""Metrics by name, as `--metric` and `--reward` take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from foveate.scoring import lmms, metrics
from foveate.scoring.metrics import MetricError

Metric = Callable[[str, Sequence[str]], float]

METRICS: dict[str, Metric] = {
    "exact_match": metrics.exact_match,
    "contains": metrics.contains,
    "multiple_choice": metrics.multiple_choice,
    "vqa_accuracy": metrics.vqa_accuracy,
    "anls": metrics.anls,
    "relaxed_accuracy": metrics.relaxed_accuracy,
    "lmms:exact_match": lmms.exact_match,
    "lmms:vqa_accuracy": lmms.vqa_accuracy,
    "lmms:vqav2": lmms.vqav2,
    "lmms:anls": lmms.anls,
    "lmms:relaxed_accuracy": lmms.relaxed_accuracy,
}


def metric(name: str) -> Metric:
    """A metric by name; those of lmms-eval have the prefix `lmms:`.

    Raises:
        MetricError: there is none of that name.
    """
    if name not in METRICS:
        raise MetricError(f"No metric is called {name!r}; there are {', '.join(METRICS)}.")
    return METRICS[name]
