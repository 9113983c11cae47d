"""The built-in scenes as the lmms-eval task `foveate_scenes`.

`python -m foveate.plugins.lmms.scenes` prints the folder for `--include_path`. The data file holds sample numbers
only; images are rendered when they are needed.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from foveate.scenes import Sample, load
from foveate.scoring.metrics import exact_match

FOLDER = Path(__file__).parent / "tasks"


@lru_cache(maxsize=64)
def _sample(index: int) -> Sample:
    return load("test", 1, index)[0]


def visual(doc: dict[str, Any]) -> list[Any]:
    """Images of a sample."""
    return list(_sample(doc["index"]).images)


def text(doc: dict[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    """Question of a sample."""
    return _sample(doc["index"]).question


def target(doc: dict[str, Any]) -> str:
    """Answer of a sample."""
    return _sample(doc["index"]).answer


def results(doc: dict[str, Any], answers: list[str]) -> dict[str, float]:
    """Exact match, over all questions and over those of this type's need."""
    sample = _sample(doc["index"])
    score = exact_match(answers[0], [sample.answer])
    return {"exact_match": score, f"exact_match_{sample.need}": score}


def mean(scores: list[float]) -> float:
    """Average of what `results` gave."""
    return sum(scores) / len(scores)


if __name__ == "__main__":
    print(FOLDER)
