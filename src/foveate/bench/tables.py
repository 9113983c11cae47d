"""What a report says, in tables of at most 80 columns: first what a user waits for, then where it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class ReportTable:
    """One table of a report.

    Attributes:
        title, columns: headings; the first column names the setting.
        cells: a row of `report["results"]` as text, without its name.
    """

    title: str
    columns: tuple[str, ...]
    cells: Callable[[Row], list[str]]

    def line(self, row: Row) -> list[str]:
        """A line of the table."""
        return [row["setting"], *self.cells(row)]


def _median(row: Row, name: str) -> float:
    value: float = row["times"][name]["median"]
    return value


def _faster(row: Row, name: str) -> str:
    found = row["speedup"][name]
    return f"{found['median']:.2f}x ({found['min']:.2f}-{found['max']:.2f})"


def _waiting(row: Row) -> list[str]:
    return [
        f"{_median(row, 'first_token_ms'):.1f}",
        _faster(row, "first_token_ms"),
        f"{_median(row, 'total_ms'):.1f}",
        _faster(row, "total_ms"),
        f"{row['tokens_per_s']:.1f}",
    ]


def _parts(row: Row) -> list[str]:
    parts = ("vision_ms", "prefill_ms", "select_ms", "decode_ms")
    return [*(f"{_median(row, name):.1f}" for name in parts), _faster(row, "prefill_ms")]


def _memory(row: Row) -> list[str]:
    alive = sum(row["alive_per_layer"]) / len(row["alive_per_layer"])
    return [
        f"{alive:.0f} ({row['keep_ratio']:.1%})",
        f"{row['kv_bytes'] / 1e6:.2f}",
        f"{row['kv_bytes'] / row['kv_bytes_unpruned']:.0%}" if row["kv_bytes_unpruned"] else "-",
        "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}",
    ]


def _operations(row: Row) -> list[str]:
    flops, ideal, achieved = row["flops"], row["ideal"], row["achieved_of_ideal"]
    return [
        *(f"{flops[name] / 1e9:.2f}" for name in ("vision", "prefill", "method")),
        f"{ideal['first_token']:.2f}x",
        f"{row['ideal_with_method']:.2f}x",
        f"{achieved['first_token']:.2f}",
        f"{ideal['prefill']:.2f}x",
        f"{achieved['prefill']:.2f}",
    ]


TABLES = (
    ReportTable(
        "What a user waits for (speed-up over unpruned)",
        ("setting", "first\ntoken ms", "speed-up", "all\nms", "speed-up", "tokens\n/s"),
        _waiting,
    ),
    ReportTable(
        "Where the time goes",
        ("setting", "vision\nms", "prefill\nms", "of it\nselecting", "decode\nms/token", "prefill\nspeed-up"),
        _parts,
    ),
    ReportTable("Memory", ("setting", "visual tokens\nper layer", "KV MB", "of\nunpruned", "peak MB"), _memory),
    ReportTable(
        "Operations, and the speed-up that they alone would give (ideal)",
        (
            *("setting", "vision\nGFLOPs", "prefill\nGFLOPs", "method\nGFLOPs", "first\ntoken", "with\nmethod"),
            *("meas.\n/ ideal", "prefill", "meas.\n/ ideal"),
        ),
        _operations,
    ),
)
