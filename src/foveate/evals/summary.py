"""From answers to numbers: scores, intervals, kept tokens, times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.errors import DataError
from foveate.evals.latency import compared, first_token_ms
from foveate.evals.store import Record, Store
from foveate.scoring import MetricError, metric

RESAMPLES = 2000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """The answers of one setting, in the order of the task's samples.

    Attributes:
        key, name: setting in full and in short.
        records: one per sample.
        scores: `[n]`, each in [0, 1].
    """

    key: str
    name: str
    records: list[Record]
    scores: Floats

    def mean(self, column: str) -> float:
        return float(np.mean([record[column] for record in self.records]))

    def median(self, column: str) -> float:
        return float(np.median([record[column] for record in self.records]))


def collect(store: Store, keys: Sequence[tuple[str, str]], ids: Sequence[str], name: str) -> list[Answers]:
    """Score the stored answers of some settings on the samples that all of them have answered.

    Args:
        keys: (setting in full, short name).
        ids: the task's samples.
        name: the metric.

    Raises:
        DataError: nothing was answered.
        MetricError: unknown metric, or references it cannot score (names the sample).
    """
    common = [sample for sample in ids if all((key, sample) in store for key, _ in keys)]
    if not common:
        raise DataError("No sample was answered: every one of them was skipped. Check the images of the data.")
    found = []
    for key, short in keys:
        records = [store.records[key, sample] for sample in common]
        found.append(Answers(key, short, records, np.array([_score(name, record) for record in records])))
    return found


def _score(name: str, record: Record) -> float:
    try:
        return metric(name)(record["prediction"], record["answers"])
    except MetricError as error:
        raise MetricError(f"sample {record['sample']}: {error}") from error


def resamples(n: int, seed: int = 0) -> NDArray[np.int64]:
    """`[RESAMPLES, n]` indices; the same for all settings, so that differences are paired."""
    return np.random.default_rng(seed).integers(0, n, size=(RESAMPLES, n))


def interval(values: Floats, low: float = 2.5, high: float = 97.5) -> list[float]:
    """Percentile interval `[low, high]` of bootstrapped values."""
    return [float(v) for v in np.percentile(values, [low, high])]


def summarise(answers: Sequence[Answers], seed: int = 0) -> list[dict[str, Any]]:
    """One row per setting; the first setting is the reference for `retention`.

    `score` and `retention` come with bootstrap 95 % intervals over samples; `retention_low` is the one-sided
    95 % lower bound that `foveate tune` uses. Times are medians per sample (a batch's time over its rows); `ttft_ms` is
    that of the time to first token, `ttft_ratio` the median of its ratio to the reference's on the same sample, with
    one-sided 95 % bounds (`latency.median_bounds`).
    """
    draws = resamples(len(answers[0].scores), seed)
    reference = answers[0].scores
    base = reference[draws].mean(1)
    rows = []
    for one in answers:
        boot = one.scores[draws].mean(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            kept = np.where(base > 0, boot / base, np.nan)
        known = bool(np.isfinite(kept).all())
        tokens = one.mean("kept_tokens")
        rows.append(
            {
                "setting": one.name,
                "description": one.key,
                "samples": len(one.records),
                "score": float(one.scores.mean()),
                "score_interval": interval(boot),
                "retention": float(one.scores.mean() / reference.mean()) if reference.mean() else None,
                "retention_interval": interval(kept) if known else None,
                "retention_low": interval(kept, 5, 95)[0] if known else None,
                "by_type": _by_type(one),
                "visual_tokens": one.mean("visual_tokens"),
                "kept_tokens": tokens,
                "kept": float(np.mean([r["kept_tokens"] / max(r["visual_tokens"], 1) for r in one.records])),
                "left": _left(one),
                "kv_bytes": one.mean("kv_bytes"),
                **{name: one.median(name) for name in ("vision_ms", "select_ms", "prefill_ms")},
                "ttft_ms": float(np.median([first_token_ms(record) for record in one.records])),
                **compared(one.records, answers[0].records),
            }
        )
    return rows


def _left(one: Answers) -> float | None:
    """None: answers from before it was noted are among them."""
    if not all("left_tokens" in record for record in one.records):
        return None
    return float(np.mean([record["left_tokens"] / max(record["visual_tokens"], 1) for record in one.records]))


def _by_type(one: Answers) -> dict[str, dict[str, Any]]:
    kinds = sorted({record["type"] for record in one.records} - {""})
    found = {}
    for kind in kinds:
        own = np.array([record["type"] == kind for record in one.records])
        kept = [r["kept_tokens"] / max(r["visual_tokens"], 1) for r in one.records if r["type"] == kind]
        found[kind] = {"samples": int(own.sum()), "score": float(one.scores[own].mean()), "kept": float(np.mean(kept))}
    return found
