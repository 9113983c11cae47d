"""Rows from tables or the built-in scenes, each checked by itself.

A table has a column `image` (a path relative to the table, a data URI, or a Hugging Face image column) or `images` (a
list of them), `question`, `answer` or `answers` (see `answers.read_answers`) and, optionally, `type` and `boxes`: a
list of evidence boxes or, for several images, one such list per image. Instead of images or beside them it may have
`video` or `videos`, with `frames` or `fps` for how many frames of them are taken.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from foveate.data.answers import checked_text, read_answers
from foveate.data.boxes import Box, read_boxes
from foveate.data.images import is_data_uri, open_image
from foveate.data.rendered import Scenes
from foveate.data.rows import Row, Rows, Rules, Stored
from foveate.data.tables import Table, read_table
from foveate.data.videos import FrameSampling
from foveate.errors import DataError, FoveateError, ImageError

Progress = Callable[[Iterable[Row | str], int], Iterable[Row | str]]
"""Takes what goes through it and how many there will be (a progress bar)."""

Sizes = tuple[tuple[int, int], ...]
Divided = Callable[[Callable[[int], Sizes | str], Sequence[int], Progress | None], list[Sizes | str]]
"""Results of a function for every number, in order, of which several processes find a share each."""

_SHOWN = 5


def read_rows(
    source: str | Path,
    rules: Rules,
    limit: int | None = None,
    start: int = 0,
    progress: Progress | None = None,
    divided: Divided | None = None,
) -> Rows:
    """Rows of a table, or of the built-in scenes.

    Args:
        source: `scenes:SPLIT` (`scenes` is `scenes:train`), a `.jsonl`, `.json` (lines or an array) or `.parquet` file,
            or a folder that `datasets.Dataset.save_to_disk` wrote.
        limit: at most so many rows, bad ones included, from row `start` (counted from 0) on.
        divided: opens images for several processes, each of which calls this; None: they are opened here.

    Raises:
        DataError: unreadable table, no usable row, or (unless `skip_bad`) bad rows, with their numbers.
        UnknownSplitError: scenes that there are not.
    """
    kind, _, split = str(source).partition(":")
    if kind == "scenes":
        scenes = Scenes.load(split or "train", limit, start)
        return Rows(scenes, scenes.ids, f"scenes:{scenes.split}")
    table = read_table(Path(source))
    stop = len(table) if limit is None else min(len(table), start + limit)
    indices = range(min(start, stop), stop)
    results = list(_checked(table, indices, rules, progress, divided))
    bad = [f"row {result}" for result in results if isinstance(result, str)]
    rows = [result for result in results if isinstance(result, Row)]
    refuse(str(source), bad, len(results), rules.skip_bad)
    if not rows:
        raise DataError(f"{source} has no usable row" + (f"; the first problem: {bad[0]}" if bad else ""))
    return Rows.of(rows, table.path.name, (f"{source} {problem}" for problem in bad))


def refuse(name: str, bad: Sequence[str], total: int, skip_bad: bool) -> None:
    """Say which rows are bad, unless they are to be left out.

    Raises:
        DataError: there are bad rows.
    """
    if not bad or skip_bad:
        return
    more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    raise DataError(
        f"{name}: {len(bad)} of {total} rows cannot be used (repair them, or leave them out with --skip-bad):\n  "
        + "\n  ".join(bad[:_SHOWN])
        + more
    )


def _checked(
    table: Table, indices: range, rules: Rules, progress: Progress | None, divided: Divided | None
) -> Iterator[Row | str]:
    """Each row, or its number and what is wrong with it."""
    known: list[Sizes | str] | None = None
    if divided is not None and rules.opens_images:
        known, progress = divided(lambda index: _sizes(table, index), indices, progress), None

    def one(place: int) -> Row | str:
        try:
            return read_row(table, indices[place], rules, None if known is None else known[place])
        except FoveateError as error:
            return f"{table.number(indices[place])}: {error}"

    opens = rules.opens_images and known is None
    with ThreadPoolExecutor(None if opens else 1) as pool:  # images are decoded, in threads
        results = pool.map(one, range(len(indices)))
        yield from results if progress is None else progress(results, len(indices))


def _sizes(table: Table, index: int) -> Sizes | str:
    """Sizes of the images of a row, each opened once, or what is wrong with them."""
    try:
        return _opened(_sources(table.row(index), "image")[1], table)
    except FoveateError as error:
        return str(error)


def _opened(sources: Sequence[Any], table: Table) -> Sizes:
    return tuple(open_image(source, folder=table.folder).size for source in sources)


def read_row(table: Table, index: int, rules: Rules, known: Sizes | str | None = None) -> Row:
    """One row of a table.

    Args:
        known: the sizes of its images, or what is wrong with them, where they have been opened elsewhere.

    Raises:
        DataError, BoxError, ImageError: what is wrong with it, without its number.
    """
    columns, number = table.row(index), table.number(index)
    name, sources = _sources(columns, "image")
    film, videos = _sources(columns, "video")
    if videos and not rules.takes_videos:
        raise DataError("videos cannot be used here; give images (column `image` or `images`)")
    if not sources and not videos:
        raise DataError(f"there is no image (column `image` or `images`) and no video; {_there_are(columns)}")
    question, answers = _question(columns, rules.needs_question), _answers(columns, rules.needs_answer)
    if isinstance(known, str):
        raise ImageError(known)
    sizes = (_opened(sources, table) if known is None else known) if rules.opens_images else ()
    return Row(
        number=number,
        images=tuple(_image(table, index, name, place, value) for place, value in enumerate(sources)),
        question=question,
        answers=answers,
        boxes=_boxes(columns.get("boxes"), sizes, rules),
        type=_type(columns.get("type")),
        id=_identity(number, question, answers, [*sources, *videos]),
        source=str(table.path),
        sizes=sizes,
        videos=tuple(_image(table, index, film, place, value) for place, value in enumerate(videos)),
        sampling=_sampling(columns) if videos else None,
    )


def _sampling(columns: Mapping[str, Any]) -> FrameSampling | None:
    frames, fps = (None if (value := columns.get(name)) != value else value for name in ("frames", "fps"))
    if frames is None and fps is None:
        return None
    try:
        return FrameSampling(None if frames is None else int(frames), None if fps is None else float(fps))
    except (TypeError, ValueError) as error:
        raise DataError(f"frames={frames!r}, fps={fps!r}: {error}") from error


def _identity(number: int, question: str, answers: Sequence[str], sources: Sequence[Any]) -> str:
    digest = hashlib.sha256(json.dumps([question, answers, *map(_label, sources)]).encode())
    return f"{number}-{digest.hexdigest()[:12]}"


def _label(source: Any) -> str:
    """What tells an image from another without decoding it."""
    data = source.get("bytes") if isinstance(source, Mapping) else source
    if isinstance(data, bytes) and data:
        return hashlib.sha256(data).hexdigest()
    return str(source.get("path") if isinstance(source, Mapping) else source)


def _sources(columns: Mapping[str, Any], what: str) -> tuple[str, list[Any]]:
    """The column that holds the images (or videos), and them."""
    name = next((name for name in (f"{what}s", what) if columns.get(name) not in (None, [])), None)
    if name is None:
        return what, []
    value = columns[name]
    sources = list(value) if isinstance(value, list | tuple) else [value]
    for place, source in enumerate(sources, 1):
        held = (source.get("bytes") or source.get("path")) if isinstance(source, Mapping) else source
        if not isinstance(held, str | bytes) or not held:
            raise DataError(
                f"{what} {place} of {len(sources)} is neither a path, nor a data URI, nor bytes, but "
                f"{type(held).__name__ if held or held is None else 'empty'}"
            )
    return name, sources


def _image(table: Table, index: int, column: str, place: int, value: Any) -> Path | str | Stored:
    """What to keep of an image until it is opened: little."""
    if isinstance(value, Mapping) and not value.get("bytes"):
        value = value["path"]
    if not isinstance(value, str) or is_data_uri(value):
        return Stored(table, index, column, place)
    return value if "://" in value else table.folder / value


def _question(columns: Mapping[str, Any], needed: bool) -> str:
    value = columns.get("question")
    if not needed and value is None:
        return ""
    if "question" not in columns:
        raise DataError(f"there is no column `question`; {_there_are(columns)}")
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError("the question is empty")
    if not isinstance(value, str):
        raise DataError(f"the question is not text but {type(value).__name__}")
    return checked_text(value, "the question")


def _answers(columns: Mapping[str, Any], needed: bool) -> tuple[str, ...]:
    for name in ("answers", "answer"):
        if found := read_answers(columns.get(name)):
            return found
    if needed and not columns.keys() & {"answers", "answer"}:
        raise DataError(f"there is no column `answer` or `answers`; {_there_are(columns)}")
    if needed:
        raise DataError("the answer is empty")
    return ()


def _there_are(columns: Mapping[str, Any]) -> str:
    return f"there are {', '.join(map(str, columns)) or 'no columns'}"


def _type(value: Any) -> str:
    return "" if value is None or value != value else checked_text(str(value), "the type")  # NaN is no type


def _boxes(raw: Any, sizes: Sequence[tuple[int, int]], rules: Rules) -> tuple[tuple[Box, ...], ...] | None:
    if rules.box_format is None:
        return None
    if raw is None:
        if rules.needs_boxes:
            raise DataError("no evidence boxes (column `boxes`); train with --objective distill without them")
        return None
    return read_boxes(raw, sizes, rules.box_format)
