"""The rows of one part answered: images of like size together, what cannot be answered as an error of its row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from transformers import LogitsProcessorList

from foveate.batch.manifest import Manifest, Unread
from foveate.batch.parts import BatchError, Record
from foveate.core.method import Method
from foveate.data.rows import Row, image_size
from foveate.errors import ConfigurationError, FoveateError, MissingTapError, UnsupportedModelError
from foveate.inference.answer import Answer, Asker
from foveate.inference.rows import Loaded, prepare
from foveate.inference.schemas import JsonSchema

_OF_SETTINGS = (ConfigurationError, MissingTapError, UnsupportedModelError)
"""Errors that every row would have: they stop the batch."""


class Answering:
    """Answers rows in batches; one that fails is halved until what fails is one row.

    Args:
        asker: the model.
        method: what prunes.
        batch: rows a batch; those of like size share one, so that little is padding.
        schema: that every answer follows.
    """

    def __init__(self, asker: Asker, method: Method | None, batch: int, schema: JsonSchema | None = None) -> None:
        self.asker, self.method, self.batch, self.schema = asker, method, batch, schema
        self._unforeseen: list[str] = []  # what rows failed of that is no error about a row

    def answer(
        self, manifest: Manifest, indices: range, on_rows: Callable[[int], None] = lambda n: None
    ) -> list[Record]:
        """A record for each row, in the order of the manifest.

        Args:
            on_rows: told how many more rows are done.

        Raises:
            BatchError: no row could be answered, and not because of what the rows are: the model or the machine fails.
            ConfigurationError, MissingTapError, UnsupportedModelError: the method does not fit the model.
        """
        read = [manifest.read(index) for index in indices]
        records = {one.number: _record(one.number, error=one.problem) for one in read if isinstance(one, Unread)}
        on_rows(len(records))
        self._unforeseen = []
        rows = [one for one in read if isinstance(one, Row)]
        for loaded, refused in _opened(sorted(rows, key=_extent, reverse=True), self.batch):
            found = [*refused, *self._ask(loaded)]
            records |= {record["row"]: record for record in found}
            on_rows(len(found))
        if self._unforeseen and all(record["error"] for record in records.values()):
            raise BatchError(f"No row of rows {indices.start + 1}-{indices.stop} was answered: {self._unforeseen[0]}")
        return [records[manifest.table.number(index)] for index in indices]

    def _ask(self, rows: Sequence[Loaded]) -> list[Record]:
        if not rows:
            return []
        try:
            return self._ask_together(rows)
        except (*_OF_SETTINGS, torch.AcceleratorError):  # a device that failed once answers nothing any more
            raise
        except Exception as error:
            problem = str(error) if isinstance(error, FoveateError) else f"{type(error).__name__}: {error}"
            if not isinstance(error, FoveateError | torch.OutOfMemoryError | MemoryError) and len(rows) == 1:
                self._unforeseen.append(problem)
        if len(rows) == 1:
            return [_of(rows[0][0], error=problem)]
        half = len(rows) // 2
        return self._ask(rows[:half]) + self._ask(rows[half:])

    def _ask_together(self, rows: Sequence[Loaded]) -> list[Record]:
        found = prepare(self.asker, rows)
        more = {} if self.schema is None else {"logits_processor": LogitsProcessorList([self.schema.processor()])}
        answers = self.asker.answer(found.inputs, self.method, **more) if found.rows else []
        records = [_of(row, answer) for row, answer in zip(found.rows, answers, strict=True)]
        return records + [_of(row, error=str(error)) for row, error in found.refused]


def _opened(rows: Sequence[Row], batch: int) -> Iterator[tuple[list[Loaded], list[Record]]]:
    """Batches of rows with their images, decoded in threads while the model is busy with the batch before, and the
    records of those whose images cannot be opened."""
    batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    with ThreadPoolExecutor() as pool:
        ahead: list[list[Future[Any]]] = []
        for number, some in enumerate(batches):
            ahead += [[pool.submit(row.load_media) for row in one] for one in batches[len(ahead) : number + 2]]
            loaded, refused = list[Loaded](), list[Record]()
            for row, images in zip(some, ahead[number], strict=True):
                try:
                    loaded.append((row, images.result()))
                except (FoveateError, MemoryError) as error:
                    refused.append(_of(row, error=str(error) or "its images do not fit into memory"))
            ahead[number] = []
            yield loaded, refused


def _extent(row: Row) -> tuple[int, int, int]:
    """Number of images and pixels: what decides how many tokens a row has."""
    try:
        sizes = [image_size(image) for image in row.images]
    except FoveateError:
        return 0, 0, 0
    return len(sizes) + len(row.videos), sum(width * height for width, height in sizes), sizes[0][0] if sizes else 0


def _of(row: Row, answer: Answer | None = None, error: str | None = None) -> Record:
    images = [str(image) for image in (*row.images, *row.videos)]
    return _record(row.number, row.id, images, row.question, answer, error)


def _record(
    number: int,
    id: str | None = None,
    images: Sequence[str] = (),
    prompt: str | None = None,
    answer: Answer | None = None,
    error: str | None = None,
) -> Record:
    return {
        "row": number,
        "id": id,
        "images": [_utf8(image) for image in images],
        "prompt": prompt and _utf8(prompt),
        "answer": answer and _utf8(answer.text),
        "stop": answer and answer.stop,
        "visual_tokens": answer and answer.visual_tokens,
        "kept_tokens": answer and answer.kept_tokens,
        "error": error and _utf8(error),
    }


def _utf8(text: str) -> str:
    """The text with what parquet cannot hold (halves of surrogate pairs, foreign bytes in file names) written out."""
    return text.encode("utf-8", "backslashreplace").decode()
