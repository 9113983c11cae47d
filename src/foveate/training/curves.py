"""The picture of a run: what was logged, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate.files.atomic import replacing

SHOWN = (
    "loss", "le_loss", "loc_loss", "kl_loss", "keep_loss", "reward", "accuracy", "recall", "expected", "kept",
    "kept_share", "threshold", "kl", "frac_reward_zero_std", "grad_norm", "learning_rate",
)  # fmt: skip
"""What is drawn where it was logged, in this order."""

Log = Sequence[Mapping[str, Any]]


def draw(log: Log, path: Path) -> None:
    """Write a panel for each quantity: a line for training, points with 95 % intervals for held-out data.

    Args:
        log: of a trainer, entries with `step`; held-out values begin with `eval_`, their intervals end in `_low` and
            `_high`.
    """
    from matplotlib.figure import Figure

    names = [name for name in SHOWN if _curve(log, name)[0] or _curve(log, f"eval_{name}")[0]]
    rows = max(1, -(-len(names) // 3))
    drawn = Figure(figsize=(12, 2.6 * rows), layout="constrained")
    for place, name in enumerate(names, 1):
        axes = drawn.add_subplot(rows, 3, place)
        steps, values = _curve(log, name)
        if steps:
            axes.plot(steps, values, linewidth=1, marker=None if len(steps) > 1 else "o", label="training")
        _held_out(axes, log, f"eval_{name}")
        axes.set(title=name, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    with replacing(path) as partial:
        drawn.savefig(partial, format="png", dpi=110)


def _curve(log: Log, name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one quantity; of a step that was repeated, the last."""
    found = {entry["step"]: float(entry[name]) for entry in log if name in entry}
    return list(found), list(found.values())


def _held_out(axes: Any, log: Log, name: str) -> None:
    steps, values = _curve(log, name)
    if not steps:
        return
    bounds = _curve(log, f"{name}_low")[1], _curve(log, f"{name}_high")[1]
    error = None
    if len(bounds[0]) == len(values):
        below = [max(0.0, value - low) for value, low in zip(values, bounds[0], strict=True)]
        above = [max(0.0, high - value) for value, high in zip(values, bounds[1], strict=True)]
        error = [below, above]
    axes.errorbar(steps, values, yerr=error, marker="o", capsize=3, color="C1", label="held out")
