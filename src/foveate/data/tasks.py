"""Questions about images with answers: the built-in scenes, JSON lines and parquet."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from foveate.errors import FoveateError, MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image


class DataError(FoveateError, ValueError):
    """Data that cannot be read; the message names file and row."""


@dataclass(frozen=True)
class Sample:
    """One question.

    Attributes:
        id: unique and stable within the task: row number and a digest of the row.
        where: file and row, for messages.
        question, answers: text.
        type: for scores per type; empty if the data has none.
        open: reads the images when they are needed.
    """

    id: str
    where: str
    question: str
    answers: tuple[str, ...]
    type: str
    open: Callable[[], list[Image]]

    def images(self) -> list[Image]:
        """The images of the prompt, RGB.

        Raises:
            DataError: one of them cannot be read.
        """
        try:
            return self.open()
        except FoveateError as error:
            raise DataError(f"{self.where}: {error}") from error


@dataclass(frozen=True)
class Task:
    """A list of samples; `ids` are theirs, known before a sample is read."""

    name: str
    samples: Sequence[Sample]
    ids: Sequence[str]


def load(data: str, limit: int | None = None, prompt: str = "{question}") -> Task:
    """A task by name or file.

    Args:
        data: `scenes` or `scenes:SPLIT`, or a `.jsonl` or `.parquet` file with columns `image` (or `images`),
            `question`, `answer` (or `answers`), and optionally `type`. Image paths are relative to the file;
            parquet may hold the bytes, as Hugging Face datasets write them.
        limit: the first so many samples.
        prompt: what to ask; `{question}` stands for the question.

    Raises:
        DataError: no such file, a missing column or an unusable row (with its number).
    """
    if "{question}" not in prompt:
        raise DataError(f"The prompt {prompt!r} has no {{question}} in it, so every question would be the same.")
    if data.partition(":")[0] == "scenes":
        from foveate.scenes.splits import LENGTH

        scenes = _Scenes(data.partition(":")[2] or "test", LENGTH if limit is None else limit, prompt)
        return Task(f"scenes:{scenes.split}", scenes, scenes.ids)
    path = Path(data)
    readers = {".jsonl": _json_lines, ".json": _json_lines, ".parquet": _parquet}
    if path.suffix not in readers:
        raise DataError(f"{data} is neither 'scenes', 'scenes:SPLIT' nor a .jsonl or .parquet file.")
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    samples: list[Sample] = []
    for number, row in readers[path.suffix](path):
        if limit is not None and len(samples) >= limit:
            break
        samples.append(_sample(path, number, row, prompt))
    if not samples:
        raise DataError(f"{path} has no rows.")
    return Task(path.name, samples, [sample.id for sample in samples])


class _Scenes(Sequence[Sample]):
    """Scenes, rendered when they are read; `ids` needs no rendering."""

    def __init__(self, split: str, length: int, prompt: str) -> None:
        from foveate import scenes

        self.rendered, self.split, self.prompt = scenes.load(split, length), split, prompt

    @property
    def ids(self) -> list[str]:
        return [f"{self.split}:{index}" for index in self.rendered.indices]

    def __len__(self) -> int:
        return len(self.rendered)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        one, name = self.rendered[index], self.ids[index]
        question = self.prompt.replace("{question}", one.question)
        return Sample(name, f"scenes {name}", question, (one.answer,), one.type, lambda: list(one.images))


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path} line {number} is no JSON: {error}.") from error
            if not isinstance(row, dict):
                raise DataError(f"{path} line {number} is no JSON object but {type(row).__name__}.")
            yield number, row


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtraError("Parquet files need pyarrow: pip install 'foveate[eval]'.") from error
    try:
        file = parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}.") from error


def _sample(path: Path, number: int, row: dict[str, Any], prompt: str) -> Sample:
    where = f"{path} row {number}"
    images = _column(where, row, "images", "image")
    answers = _column(where, row, "answers", "answer")
    question = _column(where, row, "question")
    references = tuple(str(a) for a in (answers if isinstance(answers, list | tuple) else [answers]))
    sources = images if isinstance(images, list | tuple) else [images]
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"{where}: the question is empty or no text.")
    if not references or not sources:
        raise DataError(f"{where}: there is no {'answer' if sources else 'image'}.")
    digest = hashlib.sha256(json.dumps([question, references, *map(_label, sources)]).encode())
    return Sample(
        id=f"{number}-{digest.hexdigest()[:12]}",
        where=where,
        question=prompt.replace("{question}", question),
        answers=references,
        type=str(row.get("type", "") or ""),
        open=lambda: [_image(path.parent, source) for source in sources],
    )


def _column(where: str, row: dict[str, Any], *names: str) -> Any:
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise DataError(f"{where}: no column {' or '.join(repr(n) for n in names)}; there are {', '.join(row) or 'none'}.")


def _label(source: Any) -> str:
    """What tells an image from another without decoding it."""
    if isinstance(source, dict):
        return hashlib.sha256(source["bytes"]).hexdigest() if source.get("bytes") else str(source.get("path"))
    return hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else str(source)


def _image(folder: Path, source: Any) -> Image:
    from PIL import Image

    from foveate.data.images import MAX_PIXELS, open_image
    from foveate.errors import ImageError

    data = source.get("bytes") if isinstance(source, dict) else source
    if not isinstance(data, bytes):
        name = source.get("path") if isinstance(source, dict) else source
        if not isinstance(name, str):
            raise ImageError(f"an image must be a path or bytes, not {type(source).__name__}.")
        return open_image(folder / name)
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS or min(image.size) < 2:
                raise ImageError(f"the image has {image.width} x {image.height} pixels.")
            return image.convert("RGB")
    except ImageError:
        raise
    except Exception as error:  # Pillow raises many kinds
        raise ImageError(f"the image's bytes cannot be read ({error}).") from error
