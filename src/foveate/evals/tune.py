"""Choose the setting with the least time to first token that keeps enough accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveate.errors import FoveateError
from foveate.specs.settings import UNPRUNED, Setting
from foveate.specs.tuned import Tuned

Row = dict[str, Any]


class NothingRetainsError(FoveateError, RuntimeError):
    """No setting keeps the demanded share of accuracy.

    Remedy: offer larger keeps or other methods, or lower `--min-retention`.
    """


MARGIN = 0.02
"""How much of the time to first token a setting must surely save."""

RULE = (
    "faster: the one-sided 95 % upper bound of the median of the paired ratios of time to first token (vision and "
    f"prefill, setting over unpruned, order statistics) lies below {1 - MARGIN}; chosen: among the settings whose "
    "interval overlaps that of the fastest, the one with the highest lower bound of retention"
)


@dataclass(frozen=True)
class Verdict:
    """A row of the table that justifies the choice.

    Attributes:
        retains: whether the lower bound of retention reaches the demand.
        faster: whether the upper bound of its time to first token, over the unpruned one, is below `1 - MARGIN`.
    """

    row: Row
    retains: bool
    faster: bool

    @property
    def eligible(self) -> bool:
        return self.retains and self.faster


def judge(rows: Sequence[Row], min_retention: float) -> list[Verdict]:
    """Verdicts on the rows of `summarise`, the unpruned reference first, then by time to first token."""
    reference, *others = rows
    verdicts = [Verdict(row, (row["retention_low"] or 0.0) >= min_retention, _faster(row)) for row in others]
    return [Verdict(reference, True, False), *sorted(verdicts, key=_ratio)]


def _ratio(verdict: Verdict) -> float:
    ratio = verdict.row["ttft_ratio"]
    return float("inf") if ratio is None else float(ratio)


def _faster(row: Row) -> bool:
    bounds = row["ttft_ratio_interval"]
    return bounds is not None and bounds[1] < 1 - MARGIN


def best(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The eligible verdict with the lowest time to first token; where noise hides which that is, the most accurate."""
    eligible = [verdict for verdict in verdicts if verdict.eligible]
    if not eligible:
        return None
    limit = min(eligible, key=_ratio).row["ttft_ratio_interval"][1]
    level = [v for v in eligible if v.row["ttft_ratio_interval"][0] <= limit]
    return max(level, key=lambda v: (v.row["retention_low"], -_ratio(v)))


def choose(verdicts: Sequence[Verdict], min_retention: float) -> Verdict:
    """The best verdict.

    Raises:
        NothingRetainsError: none is eligible; the message names the one that came nearest.
    """
    if (found := best(verdicts)) is not None:
        return found
    fast = [v for v in verdicts[1:] if v.faster]
    if not fast:
        raise NothingRetainsError(_none_faster(verdicts))
    nearest = max(fast, key=lambda v: v.row["retention_low"] or 0.0).row
    raise NothingRetainsError(
        f"No setting is sure to retain {min_retention:.1%} of the unpruned accuracy on {nearest['samples']} samples. "
        f"Nearest: {nearest['setting']}, {nearest['retention'] or 0:.1%} with lower bound "
        f"{nearest['retention_low'] or 0:.1%}. Use more samples (tighter bounds), larger --keep or a lower "
        "--min-retention."
    )


def _none_faster(verdicts: Sequence[Verdict]) -> str:
    said = f"No setting is surely {MARGIN:.0%} faster to the first token (vision and prefill) than the unpruned model"
    nearest = min(verdicts[1:], key=_ratio, default=None)
    if nearest is None or nearest.row["ttft_ratio_interval"] is None:
        return f"{said}: five measurements (batches) or more are needed to tell. Use more samples."
    row = nearest.row
    return (
        f"{said}. Nearest: {row['setting']}, {row['ttft_ratio']:.2f} of its time with upper bound "
        f"{row['ttft_ratio_interval'][1]:.2f}. Use longer prompts or larger images, a smaller --keep, or more samples "
        "on a quieter machine (tighter bounds)."
    )


def tuned(chosen: Verdict, verdicts: Sequence[Verdict], settings: Sequence[Setting], found: dict[str, Any]) -> Tuned:
    """The content of foveate.json: the choice and what it rests on.

    Args:
        found: the evaluation's summary.
    """
    setting = next(s for s in settings if s.name == chosen.row["setting"])
    assert setting.kind != UNPRUNED
    reference = verdicts[0].row
    shown = (
        "setting",
        "samples",
        "score",
        "retention",
        "retention_low",
        "kept",
        "kept_tokens",
        "ttft_ms",
        "ttft_ratio",
        "ttft_ratio_interval",
        "vision_ms",
        "prefill_ms",
        "kv_bytes",
    )
    evidence = {
        "chosen": {name: chosen.row[name] for name in shown},
        "unpruned": {name: reference[name] for name in shown},
        "ttft_speedup": 1 / chosen.row["ttft_ratio"],
        "min_retention": found["min_retention"],
        "candidates": len(verdicts) - 1,
        "bound": "one-sided 95 % paired bootstrap per candidate, not corrected for choosing among them",
        "rule": RULE,
        "run": found["run"],
        "metric": found["metric"],
        "environment": found["environment"],
        "command": found["command"],
    }
    return Tuned(setting.kind, setting.parameters, evidence)
