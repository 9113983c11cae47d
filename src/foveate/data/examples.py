"""Where questions come from: tables, or the built-in scenes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveate.data.boxes import normalize_boxes
from foveate.data.example import DataError, Example, Examples, Rules
from foveate.data.table import check_rows, read_table


def load_examples(source: str | Path, rules: Rules, limit: int | None = None, start: int = 0) -> Examples:
    """Examples of a table, or of the built-in scenes: `scenes` or `scenes:SPLIT`.

    Args:
        limit: at most so many rows, from row `start` (counted from 0) on; needed for `scenes:train`, which has
            no end.

    Raises:
        DataError: unreadable table, no usable row, or (unless `skip_bad`) bad rows, with their numbers.
    """
    if str(source).partition(":")[0] == "scenes":
        return Examples(_Scenes(str(source).partition(":")[2] or "train", limit, start))
    rows = read_table(Path(source))
    stop = len(rows) if limit is None else min(len(rows), start + limit)
    return check_rows(rows, range(start, stop), Path(source), rules)


class _Scenes(Sequence[Example]):
    """Built-in scenes, rendered when they are read."""

    def __init__(self, split: str, limit: int | None, start: int) -> None:
        from foveate import scenes

        if split == "train" and limit is None:
            raise DataError("the scenes have no end; say how many to train on (--limit)")
        self._samples = scenes.load(split, limit, start)
        self._start = start

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        sample = self._samples[index]
        boxes: list[list[list[float]]] = [[] for _ in sample.images]
        width, height = sample.image.size
        boxes[sample.asked] = normalize_boxes(sample.boxes, "pixel", width=width, height=height)
        row = self._start + index % len(self) + 1
        return Example(row, sample.images, sample.question, sample.answer, tuple(map(tuple, boxes)))
