"""The `lmms:` metrics against what lmms-eval's own functions returned (`tests/golden/metrics`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foveate.scoring import METRICS, MetricError, metric

FOLDER = Path(__file__).parents[1] / "golden" / "metrics"
FIXTURES = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("lmms_eval*.json"))]
NAMES = [name.removeprefix("lmms:") for name in METRICS if name.startswith("lmms:")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: f"seed{fixture['seed']}")
def test_equal_to_the_bit(fixture: dict[str, Any], name: str) -> None:
    column, function = fixture["names"].index(name), metric(f"lmms:{name}")
    rows = [(prediction, answers, scores[column]) for prediction, answers, scores in fixture["rows"]]
    assert len({score > 0 for _, _, score in rows}) == 2, "the fixture must tell right from wrong"
    wrong = [row for row in rows if function(row[0], row[1]) != row[2]]
    assert not wrong


@pytest.mark.parametrize(
    ("name", "prediction", "answers", "theirs", "ours"),
    [
        ("vqa_accuracy", "it's", ["it 's"] * 10, 1.0, 0.0),  # taken apart first
        ("vqa_accuracy", "red- blue-green", ["red bluegreen"] * 10, 1.0, 0.0),
        ("vqa_accuracy", "caf\u00e9", ["cafe\u0301"] * 10, 0.0, 1.0),
        ("anls", "a" + " " * 9 + "b", ["xyz"], 0.7272727272727273, 0.0),  # over the raw length
        ("relaxed_accuracy", "0.0", ["0"], 0.0, 1.0),  # a reference of 0 is text
        ("relaxed_accuracy", "1,000", ["1000"], 0.0, 1.0),
        ("relaxed_accuracy", "1.05", ["1"], 0.0, 1.0),
        ("exact_match", "3.5", ["35"], 1.0, 0.0),
        ("exact_match", "red star", ["red  star"], 0.0, 1.0),
    ],
)
def test_where_ours_differ(name: str, prediction: str, answers: list[str], theirs: float, ours: float) -> None:
    assert (metric(f"lmms:{name}")(prediction, answers), metric(name)(prediction, answers)) == (theirs, ours)


def test_few_answers() -> None:
    assert metric("lmms:vqa_accuracy")("yes", ["yes"]) == 0  # leave-one-out leaves none
    assert metric("lmms:vqa_accuracy")("yes", []) == 0
    with pytest.raises(MetricError, match="at least one"):
        metric("lmms:anls")("yes", [])
