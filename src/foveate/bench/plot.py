"""Latency and memory against keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foveate.errors import MissingExtraError
from foveate.files.atomic import replacing


def figure(found: dict[str, Any]) -> Any:
    """A matplotlib figure of a report: prefill, first token and end-to-end time, KV and peak memory.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("Plots need matplotlib: pip install 'foveate[eval]'.") from error
    run, where = found["run"], found["environment"]
    weighed = all(row["peak_bytes"] is not None for row in found["results"])
    drawn = Figure(figsize=(17 if weighed else 13, 4.2), layout="constrained")
    panels = list(drawn.subplots(1, 4 if weighed else 3))
    left, middle, right = panels[:3]
    for axes, name, title in ((left, "prefill_ms", "LLM prefill"), (middle, "first_token_ms", "time to first token")):
        _lines(axes, found, lambda row, name=name: _ms(row, name))
        axes.set(title=title, ylabel="ms (median, min-max)", ylim=(0, None))
    _lines(right, found, lambda row: (row["kv_bytes"] / 1e6, 0, 0))
    right.set(title="KV cache after the prefill", ylabel="MB", ylim=(0, None))
    if weighed:
        _lines(panels[3], found, lambda row: (row["peak_bytes"] / 1e6, 0, 0))
        panels[3].set(title=f"peak memory ({'CUDA' if 'gpu' in where else 'process'}, weights included)", ylabel="MB")
    for axes in panels:
        axes.set(xlabel="visual tokens kept, average over layers (%)", xlim=(0, 105))
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    drawn.suptitle(
        f"{run['model']}, {run['prompt']}, batch {run['batch']}, {where['dtype']}, {where['attention']}, "
        f"{where.get('gpu', where['processor'])}",
        fontsize=9,
        parse_math=False,  # a dollar in a name is a dollar
    )
    return drawn


def save(found: dict[str, Any], path: Path) -> None:
    """Draw into a file; the suffix chooses the format."""
    drawn = figure(found)
    with replacing(path) as partial:
        drawn.savefig(partial, dpi=130, format=path.suffix.removeprefix(".") or "png")


def _ms(row: dict[str, Any], name: str) -> tuple[float, float, float]:
    values = row["times"][name]
    return values["median"], values["median"] - values["min"], values["max"] - values["median"]


def _lines(axes: Any, found: dict[str, Any], read: Any) -> None:
    reference, *rows = found["results"]
    height = read(reference)[0]
    axes.axhline(height, color="grey", linestyle="--", linewidth=1)
    kinds = list(dict.fromkeys(row["method"] for row in rows))
    for number, kind in enumerate(kinds):
        own = sorted((row for row in rows if row["method"] == kind), key=lambda row: row["keep_ratio"])
        values = [read(row) for row in own]
        axes.errorbar(
            [100 * row["keep_ratio"] for row in own],
            [value[0] for value in values],
            yerr=[[value[1] for value in values], [value[2] for value in values]],
            marker="o",
            capsize=3,
            color=f"C{number}",
            label=kind,
        )
    axes.plot([100], [height], marker="s", color="grey", label="unpruned")
