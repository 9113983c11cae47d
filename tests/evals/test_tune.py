"""Summaries against hand-made scores; the choice of a setting; the file that carries it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from foveate.cli.app import app
from foveate.errors import FoveateError
from foveate.evals import latency, tune
from foveate.evals.plots import frontier
from foveate.evals.summary import Answers, summarise
from foveate.evals.tune import NothingRetainsError, choose, judge
from foveate.evals.tune import tuned as file_of
from foveate.methods import make
from foveate.specs import tuned
from foveate.specs.choose import choose_method
from foveate.specs.settings import Setting, grid
from foveate.specs.tuned import TunedFileError

SETTINGS = grid(["random"], [0.5, 0.25, 0.1])


def answers(name: str, scores: list[float], prefill: float, kept: float) -> Answers:
    record = {"type": "", "visual_tokens": 100, "kept_tokens": kept, "kv_bytes": 1, "vision_ms": 1.0, "select_ms": 0.0}
    return Answers(
        name, name, [record | {"prefill_ms": prefill, "sample": str(i)} for i in range(len(scores))], np.array(scores)
    )


@pytest.fixture
def rows() -> list[dict]:
    """200 samples: 1/2 loses 1 %, 1/4 loses 5 %, 1/10 loses half."""
    base = [1.0] * 180 + [0.0] * 20
    lost = lambda n: [0.0] * n + base[n:]  # noqa: E731
    return summarise(
        [
            answers("unpruned", base, 10, 100),
            answers("random 1/2", lost(1), 6, 50),
            answers("random 1/4", lost(9), 4, 25),
            answers("random 0.1", lost(90), 3, 10),
        ]
    )


def test_summaries_of_known_scores(rows: list[dict]) -> None:
    assert [row["score"] for row in rows] == [0.9, 0.895, 0.855, 0.45]
    assert rows[2]["retention"] == pytest.approx(171 / 180)
    # binomial: sd of a mean of 200 with p = 0.9 is 0.0212
    low, high = rows[0]["score_interval"]
    assert (high - low) / 2 == pytest.approx(1.96 * 0.0212, rel=0.1)
    # paired: the ratio of 1/2 varies by one sample in 180 only
    assert rows[1]["retention_low"] == pytest.approx(1 - 3 / 180, abs=0.004)
    assert rows[0]["retention_interval"] == [1.0, 1.0]


def test_a_reference_that_is_never_right_has_no_retention() -> None:
    row = summarise([answers("unpruned", [0.0] * 5, 1, 1), answers("x", [1.0] * 5, 1, 1)])[1]
    assert row["retention"] is None
    assert row["retention_low"] is None


@pytest.mark.parametrize(("demand", "name"), [(0.98, "random 1/2"), (0.9, "random 1/4"), (0.4, "random 0.1")])
def test_the_fastest_that_retains_enough(rows: list[dict], demand: float, name: str) -> None:
    assert choose(judge(rows, demand), demand).row["setting"] == name


def test_a_demand_that_nothing_meets(rows: list[dict]) -> None:
    with pytest.raises(NothingRetainsError, match=r"Nearest: random 1/2, 99\.4%"):
        choose(judge(rows, 0.999), 0.999)


def timed(name: str, vision: list[float], prefill: list[float], batch: int = 1) -> Answers:
    """A setting that is always right, with these times."""
    one = answers(name, [1.0] * len(vision), 0, 50)
    times = [{"vision_ms": v, "prefill_ms": p, "batch": batch} for v, p in zip(vision, prefill, strict=True)]
    records = [record | time for record, time in zip(one.records, times, strict=True)]
    return Answers(name, name, records, one.scores)


def test_a_faster_prefill_that_reading_the_tower_costs_is_not_chosen() -> None:
    """Half the prefill, but 8 ms more in the tower: slower to the first token."""
    n = 40
    stock, reader = timed("unpruned", [20.0] * n, [10.0] * n), timed("reader", [28.0] * n, [5.0] * n)
    blind = timed("blind", [20.0] * n, [8.0] * n)
    found = summarise([stock, reader, blind])
    assert [row["ttft_ms"] for row in found] == [30, 33, 28]
    assert found[1]["ttft_ratio"] == pytest.approx(1.1)
    verdicts = judge(found, 0.9)
    assert [(v.row["setting"], v.faster) for v in verdicts] == [("unpruned", False), ("blind", True), ("reader", False)]
    assert choose(verdicts, 0.9).row["setting"] == "blind"
    with pytest.raises(NothingRetainsError, match=r"first token.*Nearest: reader, 1\.10 of its time"):
        choose(judge(found[:2], 0.9), 0.9)


def test_noise_is_not_a_speed_up() -> None:
    """Settings as fast as stock: of 200 noisy evaluations about none may call one faster."""
    random = np.random.default_rng(0)
    called = 0
    for _ in range(200):
        times = 30 * random.lognormal(0, 0.2, (2, 25))
        times[:, ::6] *= 4  # a busy moment
        found = summarise([timed(name, [0.0] * 25, list(row)) for name, row in zip("uv", times, strict=True)])
        called += judge(found, 0.9)[1].faster
    assert called <= 200 * 0.05


def test_a_speed_up_under_drift_and_outliers_is_seen() -> None:
    """The machine becomes twice as slow and stalls now and then; pairs show 10 % all the same."""
    random = np.random.default_rng(1)
    drift = np.linspace(30, 60, 60) * random.lognormal(0, 0.02, 60)
    own = 0.9 * drift * random.lognormal(0, 0.02, 60)
    own[::15] *= 5
    row = summarise([timed("u", [0.0] * 60, list(drift)), timed("v", [0.0] * 60, list(own))])[1]
    low, high = row["ttft_ratio_interval"]
    assert low <= 0.9 <= high < 0.95
    assert row["ttft_ratio"] == pytest.approx(0.9, abs=0.02)


def test_a_batch_is_one_measurement() -> None:
    stock, own = timed("u", [0.0] * 16, [10.0] * 16, batch=4), timed("v", [0.0] * 16, [5.0] * 16, batch=4)
    for n, record in enumerate(own.records):
        record["prefill_ms"] += n // 4 / 100  # four batches, four times
    assert len(latency.ratios(own.records, stock.records)) == 4
    row = summarise([stock, own])[1]
    assert row["ttft_ratio_interval"] is None, "four measurements bound no median at 95 %"
    with pytest.raises(NothingRetainsError, match="five measurements"):
        choose(judge(summarise([stock, own]), 0.9), 0.9)


@pytest.mark.parametrize(("n", "rank"), [(4, None), (5, 5), (8, 7), (10, 9), (20, 15), (100, 59)])
def test_bounds_of_the_median(n: int, rank: int | None) -> None:
    """Ranks of the sign test's tables (one-sided 5 %)."""
    bounds = latency.median_bounds([float(value) for value in range(1, n + 1)])
    assert bounds == (None if rank is None else (n + 1 - rank, rank))


def test_bounds_of_many_values_follow_the_exact_ones() -> None:
    for n in (1001, 1200, 2000):
        low, high = latency.median_bounds(range(1, n + 1))
        tails = [sum(math.comb(n, k) for k in range(rank, n + 1)) / 2**n for rank in (high, high - 1)]
        assert tails[0] <= 0.05 < tails[1]
        assert low == n + 1 - high


def test_of_settings_equally_fast_the_most_accurate() -> None:
    random = np.random.default_rng(2)
    stock = random.lognormal(3, 0.1, 50)
    kept = {"much": (0.700, 1.0), "little": (0.699, 0.95), "least": (0.3, 0.5)}
    settings = [timed("u", [0.0] * 50, list(stock))]
    for name, (share, score) in kept.items():
        one = timed(name, [0.0] * 50, list(share * stock * random.lognormal(0, 0.05, 50)))
        settings.append(
            Answers(name, name, one.records, np.array([1.0] * int(50 * score) + [0.0] * (50 - int(50 * score))))
        )
    verdicts = judge(summarise(settings), 0.8)
    assert choose(verdicts, 0.8).row["setting"] == "much"
    assert choose(judge(summarise(settings), 0.3), 0.3).row["setting"] == "least"


def test_the_frontier(rows: list[dict]) -> None:
    rows.append(rows[2] | {"setting": "beaten", "kept_tokens": 60.0, "score": 0.8})
    assert [row["setting"] for row in frontier(rows, "kept_tokens")] == [
        "random 0.1", "random 1/4", "random 1/2", "unpruned",
    ]  # fmt: skip


def test_the_file_gives_the_method_back(rows: list[dict], tmp_path: Path) -> None:
    verdicts = judge(rows, 0.9)
    found = {"min_retention": 0.9, "run": {}, "metric": "m", "environment": {}, "command": ""}
    written = file_of(choose(verdicts, 0.9), verdicts, SETTINGS, found)
    path = tmp_path / "foveate.json"
    path.write_text(written.to_json())
    assert choose_method(str(path)) == make("random", keep=0.25)
    assert tuned.load(path).evidence["chosen"]["setting"] == "random 1/4"
    assert grid([str(path)], [0.5])[1] == Setting("random 1/4", "random", {"keep": 0.25})


GOOD = {"format": tuned.FORMAT, "method": "random", "parameters": {"keep": 0.5}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "Cannot read"),
        ("{", "no JSON"),
        ("[]", "has format 'list'"),
        (json.dumps(GOOD | {"format": "x"}), "has format 'x'"),
        (json.dumps(GOOD | {"method": 3}), "'method' must be"),
        (json.dumps(GOOD | {"parameters": [1]}), "'parameters' must be"),
        (json.dumps(GOOD | {"method": "gone"}), "'gone'"),
        (json.dumps(GOOD | {"parameters": {"kep": 1}}), "no parameter kep"),
        (json.dumps(GOOD | {"parameters": {"keep": 7.5}}), "must lie in"),
    ],
)
def test_unusable_files(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "foveate.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(TunedFileError, match=words):
        choose_method(str(path))


def test_reading_the_file_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    heavy = ("matplotlib", "pandas", "pyarrow", "typer")
    code = f"import sys, foveate.specs.tuned; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_command_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # times as long as the tokens: what a busy machine measures on twelve samples decides nothing
    def by_tokens(rows: list[dict], least: float) -> list[tune.Verdict]:
        ratios = [row["kept_tokens"] / rows[0]["kept_tokens"] for row in rows]
        times = [{"ttft_ratio": ratio, "ttft_ratio_interval": [ratio, ratio]} for ratio in ratios]
        return judge([row | time for row, time in zip(rows, times, strict=True)], least)

    monkeypatch.setattr(tune, "judge", by_tokens)
    options = ["tune", "--data", "scenes:val", "--limit", "12", "--method", "random", "--keep", "1/2"]
    paths = ["--out", str(tmp_path / "o"), "--write", str(tmp_path / "foveate.json")]
    result = CliRunner().invoke(app, [*options, *paths, "--min-retention", "0.01"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "chosen" in result.output
    assert "first token ms" in result.output
    assert choose_method(str(tmp_path / "foveate.json")).name == "random"
    with pytest.raises(FoveateError, match="No setting is sure to retain"):
        CliRunner().invoke(app, [*options, *paths, "--min-retention", "1.5"], catch_exceptions=False)
