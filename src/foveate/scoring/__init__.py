"""Scores of texts against texts: one meaning for evaluation and for rewards. Standard library only.

`text` says when two spellings are one text, `metrics` scores answers, `choices` and `replies` read letters and a
judge's numbers out of free text, `lmms` repeats lmms-eval's metrics to the bit, `registry` names them all.
"""

from foveate.scoring.metrics import MetricError
from foveate.scoring.registry import METRICS, Metric, metric

__all__ = ["METRICS", "Metric", "MetricError", "metric"]
