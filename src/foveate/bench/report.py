"""A measurement as JSON, CSV and a table."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foveate.bench.measure import TIMES, Result
from foveate.files.atomic import write_text

DEFINITIONS = TIMES | {
    "tokens_per_s": "new tokens of all rows over total_ms",
    "peak_bytes": "see peak_kind",
    "kv_bytes": "all key and value tensors right after the prefill",
    "visual_tokens": "visual tokens of the unpruned prompt, all rows",
    "alive_per_layer": "visual tokens that each decoder layer reads, all rows",
    "keep_ratio": "mean of alive_per_layer over visual_tokens",
    "flops": "2 per multiply-add, attention dense; `method` is what the method itself computes and is in no other "
    "figure (foveate/bench/flops.py, own_work.py)",
    "speedup": "the reference's time over this setting's, median over rounds of the ratio within a round",
    "ideal": "the reference's FLOPs over this setting's, up to the first token, in the prefill, in all",
    "ideal_with_method": "the same with the method's own work, up to the first token",
    "achieved_of_ideal": "measured speedup / ideal, of the time to first token and of the prefill",
    "spread": "(max - min) / median over the rounds",
}


def report(results: Sequence[Result], facts: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """The measurement as plain values, with all that is needed to read and repeat it.

    Args:
        results: the first one is the reference.
        facts: versions and hardware.
        run: command, model, prompt, seed and so on.
    """
    rows = [_row(result, results[0], run["batch"], run["new_tokens"]) for result in results]
    return {"format": "foveate.bench/2", "run": run, "environment": facts, "definitions": DEFINITIONS, "results": rows}


def _row(result: Result, reference: Result, batch: int, new_tokens: int) -> dict[str, Any]:
    assert result.flops is not None
    assert reference.flops is not None
    trace = result.last
    ideal = {
        name: getattr(reference.flops, name) / getattr(result.flops, name)
        for name in ("first_token", "prefill", "total")
    }
    faster = {name: _paired(reference.times[name], result.times[name]) for name in TIMES if name != "select_ms"}
    return {
        "setting": result.setting.name,
        "method": result.setting.kind,
        "parameters": result.setting.parameters,
        "description": result.description,
        "times": {name: _summary(values) for name, values in result.times.items()},
        "tokens_per_s": 1000 * batch * new_tokens / result.median("total_ms"),
        "peak_bytes": result.peak_bytes,
        "peak_kind": result.peak_kind,
        "visual_tokens": trace.visual_tokens,
        "alive_per_layer": trace.alive_per_layer(),
        "keep_ratio": trace.keep_ratio,
        "kv_bytes": trace.kv_bytes,
        "kv_bytes_unpruned": trace.kv_bytes_unpruned,
        "flops": asdict(result.flops)
        | {"first_token": result.flops.first_token, "total": result.flops.total, "method": result.own_flops},
        "speedup": faster,
        "ideal": ideal,
        "ideal_with_method": reference.flops.first_token / (result.flops.first_token + result.own_flops),
        "achieved_of_ideal": {
            name: faster[f"{name}_ms"]["median"] / ideal[name] for name in ("first_token", "prefill")
        },
    }


def _summary(values: Sequence[float]) -> dict[str, Any]:
    median = statistics.median(values)
    spread = (max(values) - min(values)) / median if median else 0.0
    return {"median": median, "min": min(values), "max": max(values), "spread": spread, "rounds": list(values)}


def _paired(before: Sequence[float], after: Sequence[float]) -> dict[str, float]:
    ratios = [a / b for a, b in zip(before, after, strict=True) if b]
    if not ratios:
        return {"median": 1.0, "min": 1.0, "max": 1.0}
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def write_json(found: dict[str, Any], path: Path) -> None:
    """Write the report; readers see the old file or the whole new one."""
    write_text(path, json.dumps(found, indent=1) + "\n")


def write_csv(found: dict[str, Any], path: Path) -> None:
    """One line per setting; medians, minima and maxima in columns of their own."""
    lines = [_flat(row) for row in found["results"]]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(lines[0]))
    writer.writeheader()
    writer.writerows(lines)
    write_text(path, buffer.getvalue())


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {"setting": row["setting"], "description": row["description"]}
    for name, values in row["times"].items():
        flat |= {f"{name}_{part}": values[part] for part in ("median", "min", "max")}
    plain = ("tokens_per_s", "peak_bytes", "visual_tokens", "keep_ratio", "kv_bytes", "kv_bytes_unpruned")
    flat |= {name: row[name] for name in plain}
    flat["alive_per_layer"] = " ".join(str(n) for n in row["alive_per_layer"])
    flat |= {f"flops_{name}": value for name, value in row["flops"].items()}
    flat |= {f"speedup_{name}": value["median"] for name, value in row["speedup"].items()}
    for group in ("ideal", "achieved_of_ideal"):
        flat |= {f"{group}_{name}": value for name, value in row[group].items()}
    return flat | {"ideal_with_method": row["ideal_with_method"]}
