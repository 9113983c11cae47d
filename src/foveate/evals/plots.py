"""Plots: accuracy against visual tokens and time to first token, and against the layer at which the image leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foveate.errors import MissingExtraError
from foveate.evals.depth import Depth

Row = dict[str, Any]


def pareto(rows: Sequence[Row], title: str, metric: str) -> Any:
    """A matplotlib figure of the rows of `summarise`; error bars are 95 % intervals.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    drawn = _figure((11, 4.4))
    left, right = drawn.subplots(1, 2, sharey=True)
    sides = (
        (left, "kept_tokens", "visual tokens, average over layers"),
        (right, "ttft_ms", "time to first token ms, median (vision and prefill)"),
    )
    for axes, column, label in sides:
        _points(axes, rows, column)
        front = frontier(rows, column)
        axes.plot([r[column] for r in front], [100 * r["score"] for r in front], color="black", linewidth=0.8, zorder=1)
        axes.set(xlabel=label, xlim=(0, None))
        axes.grid(alpha=0.3)
    left.set(ylabel=f"{metric} (%)")
    left.legend(fontsize=8, loc="lower right")
    drawn.suptitle(title, fontsize=10, parse_math=False)  # a dollar in a name is a dollar
    return drawn


def depths(found: Sequence[Depth], unpruned: float, title: str, metric: str) -> Any:
    """A matplotlib figure of what is lost when the image leaves before each layer; bars are standard errors.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    drawn = _figure((9, 3.8))
    left, right = drawn.subplots(1, 2)
    layers = [depth.layer for depth in found]
    left.errorbar(
        layers, [100 * depth.score for depth in found], yerr=[100 * depth.score_error for depth in found], marker="o",
        capsize=3,
    )  # fmt: skip
    left.axhline(100 * unpruned, color="grey", linestyle=":", label="unpruned")
    left.set(ylabel=f"{metric} (%)", ylim=(0, 105))
    left.legend(fontsize=8)
    right.errorbar(
        layers, [depth.kl for depth in found], yerr=[depth.kl_error for depth in found], marker="o", capsize=3
    )
    right.set(ylabel="KL of the first answer token (nats)", ylim=(0, None))
    for axes in (left, right):
        axes.set(xlabel="the image leaves before layer")
        axes.grid(alpha=0.3)
    drawn.suptitle(title, fontsize=10, parse_math=False)
    return drawn


def _figure(size: tuple[float, float]) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("Plots need matplotlib: pip install 'foveate[eval]'.") from error
    return Figure(figsize=size, layout="constrained")


def frontier(rows: Sequence[Row], column: str) -> list[Row]:
    """Rows that no other beats in both score and `column` (less is better), by `column`."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row[column], -row["score"])):
        if not best or row["score"] > best[-1]["score"]:
            best.append(row)
    return best


def _points(axes: Any, rows: Sequence[Row], column: str) -> None:
    kinds = list(dict.fromkeys(_kind(row) for row in rows))
    for number, kind in enumerate(kinds):
        own = sorted((row for row in rows if _kind(row) == kind), key=lambda row: row[column])
        scores = [100 * row["score"] for row in own]
        bounds = [[100 * bound for bound in row["score_interval"]] for row in own]
        below = [max(0.0, s - low) for s, (low, _) in zip(scores, bounds, strict=True)]
        above = [max(0.0, high - s) for s, (_, high) in zip(scores, bounds, strict=True)]
        colour = "grey" if kind == "unpruned" else f"C{number}"
        axes.errorbar(
            [row[column] for row in own], scores, yerr=[below, above], marker="s" if kind == "unpruned" else "o",
            linestyle=":", capsize=3, color=colour, label=kind,
        )  # fmt: skip


def _kind(row: Row) -> str:
    return str(row["setting"]).split(" ")[0]
