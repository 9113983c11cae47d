"""Choose the fastest setting that keeps enough accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveate.errors import FoveateError
from foveate.specs.settings import UNPRUNED, Setting
from foveate.specs.tuned import Tuned

Row = dict[str, Any]


class NothingRetainsError(FoveateError, RuntimeError):
    """No setting keeps the demanded share of accuracy."""


@dataclass(frozen=True)
class Verdict:
    """A row of the table that justifies the choice.

    Attributes:
        retains: whether the lower bound of retention reaches the demand.
        faster: whether its prefill is faster than the unpruned one.
    """

    row: Row
    retains: bool
    faster: bool

    @property
    def eligible(self) -> bool:
        return self.retains and self.faster


def judge(rows: Sequence[Row], min_retention: float) -> list[Verdict]:
    """Verdicts on the rows of `summarise`, the unpruned reference first, then by prefill time."""
    reference, *others = rows
    verdicts = [
        Verdict(row, (row["retention_low"] or 0.0) >= min_retention, row["prefill_ms"] < reference["prefill_ms"])
        for row in others
    ]
    return [Verdict(reference, True, False), *sorted(verdicts, key=lambda v: v.row["prefill_ms"])]


def choose(verdicts: Sequence[Verdict], min_retention: float) -> Verdict:
    """The eligible verdict with the lowest prefill time.

    Raises:
        NothingRetainsError: none is eligible; the message names the one that came nearest.
    """
    eligible = [verdict for verdict in verdicts if verdict.eligible]
    if eligible:
        return min(eligible, key=lambda v: v.row["prefill_ms"])
    fast = [v for v in verdicts[1:] if v.faster]
    if not fast:
        raise NothingRetainsError("No setting made the prefill faster than the unpruned model's; nothing to choose.")
    nearest = max(fast, key=lambda v: v.row["retention_low"] or 0.0).row
    raise NothingRetainsError(
        f"No setting is sure to retain {min_retention:.1%} of the unpruned accuracy on {nearest['samples']} samples. "
        f"Nearest: {nearest['setting']}, {nearest['retention'] or 0:.1%} with lower bound "
        f"{nearest['retention_low'] or 0:.1%}. Use more samples (tighter bounds), larger --keep or a lower "
        "--min-retention."
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
        "prefill_ms",
        "kv_bytes",
    )
    evidence = {
        "chosen": {name: chosen.row[name] for name in shown},
        "unpruned": {name: reference[name] for name in shown},
        "prefill_speedup": reference["prefill_ms"] / chosen.row["prefill_ms"],
        "min_retention": found["min_retention"],
        "candidates": len(verdicts) - 1,
        "bound": "one-sided 95 % paired bootstrap per candidate, not corrected for choosing among them",
        "run": found["run"],
        "metric": found["metric"],
        "environment": found["environment"],
        "command": found["command"],
    }
    return Tuned(setting.kind, setting.parameters, evidence)
