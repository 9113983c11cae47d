"""Tables of questions, JSON lines or parquet, checked row by row.

A table has a column `image` (a path relative to the table, or a Hugging Face image column) or `images` (a
list of them), `question`, `answer` and, optionally, `boxes`: a list of evidence boxes or, for several images,
one such list per image.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import track

from foveate.data.boxes import Box, check_boxes, normalize_boxes
from foveate.data.example import DataError, Embedded, Example, Examples, Rules, open_image
from foveate.errors import FoveateError

_READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_SHOWN = 5


def stderr() -> Console:
    """Where progress bars go, so that standard output stays clean."""
    return Console(stderr=True)


def read_table(path: Path) -> Any:
    """The rows of a table, as a `datasets.Dataset` whose images stay encoded.

    Raises:
        DataError: no such file, or not what its suffix says.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: training data must be one of {', '.join(_READERS)}, or `scenes`")
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    import datasets  # slow to import

    try:
        return _undecoded(datasets.load_dataset(reader, data_files=str(path), split="train"))
    except (datasets.exceptions.DatasetGenerationError, ValueError, OSError) as error:
        reason = error.__cause__ or error
        raise DataError(f"{path} cannot be read as {reader}: {reason}") from error


def _undecoded(rows: Any) -> Any:
    """Image columns as stored (bytes or path), so that reading a row decodes nothing."""
    from datasets import Image as ImageFeature
    from datasets import List

    stored = ImageFeature(decode=False)
    for name, feature in rows.features.items():
        if isinstance(feature, ImageFeature):
            rows = rows.cast_column(name, stored)
        elif isinstance(getattr(feature, "feature", None), ImageFeature):
            rows = rows.cast_column(name, List(stored))
    return rows


def check_rows(rows: Any, numbers: range, path: Path, rules: Rules) -> Examples:
    """Turn rows into examples. Every image is decoded once, in threads, to be sure that it can be.

    Raises:
        DataError: bad rows (unless they may be skipped), or no good one.
    """

    def one(number: int) -> Example | str:
        try:
            return _example(rows, number, path.parent, rules)
        except FoveateError as error:
            return f"row {number + 1}: {error}"

    with ThreadPoolExecutor() as pool:
        results = list(track(pool.map(one, numbers), "checking data", len(numbers), console=stderr()))
    bad = [result for result in results if isinstance(result, str)]
    good = [result for result in results if isinstance(result, Example)]
    if bad and not rules.skip_bad:
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise DataError(
            f"{path}: {len(bad)} of {len(results)} rows cannot be used (repair them, or leave them out with "
            "--skip-bad):\n  " + "\n  ".join(bad[:_SHOWN]) + more
        )
    if not good:
        raise DataError(f"{path} has no usable row" + (f"; the first problem: {bad[0]}" if bad else ""))
    return Examples(good, len(bad), all(example.answer is not None for example in good))


def _example(rows: Any, number: int, folder: Path, rules: Rules) -> Example:
    row = rows[number]
    column = "image" if row.get("images") is None else "images"
    sources = row.get(column) if isinstance(row.get(column), list) else [row.get(column)]
    if not sources or any(source is None for source in sources):
        raise DataError("no image (column `image` or `images`)")
    places = [Embedded(rows, number, column, place) for place in range(len(sources))]
    images = tuple(_source(source, place, folder) for source, place in zip(sources, places, strict=True))
    question, answer = _text(row, "question"), _text(row, "answer", rules.needs_answer)
    assert question is not None
    sizes = [_size(image) for image in images]
    boxes = _boxes(row.get("boxes"), sizes, rules)
    return Example(number + 1, images, question, answer, boxes)


def _text(row: Mapping[str, Any], column: str, needed: bool = True) -> str | None:
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{column} is not text but {type(value).__name__}")
    if value and value.strip():
        return value
    if needed:
        raise DataError(f"{column} is empty")
    return None


def _source(value: Any, place: Embedded, folder: Path) -> Path | Embedded:
    if isinstance(value, Mapping):  # the storage of a Hugging Face image column
        if value.get("bytes"):
            return place
        value = value.get("path")
    if not isinstance(value, str):
        raise DataError(f"an image is neither a path nor an image column's value but {type(value).__name__}")
    path = folder / value
    if not path.is_file():
        raise DataError(f"image {path} does not exist")
    return path


def _size(source: Path | Embedded) -> tuple[int, int]:
    try:
        return open_image(source).size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"image {source} cannot be read: {error}") from error


def _boxes(raw: Any, sizes: Sequence[tuple[int, int]], rules: Rules) -> tuple[tuple[Box, ...], ...] | None:
    if raw is None:
        if rules.needs_boxes:
            raise DataError("no evidence boxes (column `boxes`); train with --objective distill without them")
        return None
    per_image = [raw] if len(sizes) == 1 and not _nested(raw) else raw
    if len(per_image) != len(sizes):
        raise DataError(f"boxes are given for {len(per_image)} images, but there are {len(sizes)}")
    out = []
    for boxes, (width, height) in zip(per_image, sizes, strict=True):
        _check_shape(boxes)
        normalized = normalize_boxes(boxes, rules.box_format, width=width, height=height)
        check_boxes(normalized)
        out.append(tuple(map(tuple, normalized)))
    return tuple(out)


def _check_shape(boxes: Any) -> None:
    """Refuse anything but a list of four-number lists, before arithmetic is done with it."""
    for box in boxes:
        if not isinstance(box, list | tuple) or len(box) != 4 or any(x is None for x in box):
            raise DataError(f"box {box} is not a list of four numbers")


def _nested(raw: Sequence[Any]) -> bool:
    """Whether boxes are given per image: lists of lists of lists."""
    return any(isinstance(box, list) and any(isinstance(x, list) for x in box) for box in raw)
