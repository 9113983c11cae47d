"""Answers for questions that have none: what the unpruned base model says, part by part, shared by all processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.progress import track

from foveate.batch.parts import BatchFolder, Record
from foveate.data.rows import Row, Rows
from foveate.errors import DataError
from foveate.inference.answer import GREEDY, Asker
from foveate.training.glimpse.collate import Collator
from foveate.training.identity import plain, row_digest
from foveate.training.processes import divided, from_first, gathered, is_first, together, world
from foveate.training.rows import stderr
from foveate.training.sharding import is_sharded

PART = 32
"""Rows that a killed process asks again at most."""


def fill_answers(
    asker: Asker,
    collator: Collator,
    examples: Rows,
    folder: Path,
    weights: str | None,
    *,
    batch: int = 8,
    part: int = PART,
) -> Sequence[Row]:
    """Examples with every missing answer replaced by the base model's own greedy answer.

    Every process asks its share of the parts that `folder` does not hold yet, each a file that appears whole: an
    interrupted run goes on where it stopped, also with another number of processes. An example for which the model
    says nothing is left out.

    Args:
        asker: the base model.
        weights: `fingerprint` of the base model.
        batch: rows that are asked at a time.
        part: rows of a file.

    Raises:
        BatchError: the folder holds answers of another model, to other questions or images, or asked otherwise.
        DataError: the model says nothing to any question.
        ProcessError: another process failed.
    """
    if examples.answered:
        return examples
    rows = [row for row in examples if not row.answers]
    asking = _Asking(asker, collator, rows, divided(row_digest, rows), batch)
    spec = plain(_circumstances(asking, weights) | {"rows a file": part})
    texts = _answers(asking, BatchFolder(folder, spec, len(rows), part))
    given = dict(zip((row.number for row in rows), texts, strict=True))
    filled = (_answered(row, given.get(row.number)) for row in examples)
    answered = [example for example in filled if example.answer]
    if not answered:
        raise DataError("the base model gave no answer to any question; check model, images and system message")
    return answered


def _answered(example: Row, answer: str | None) -> Row:
    """With the base model's answer, where one was missing and it gave one."""
    return replace(example, answers=(answer,)) if answer and not example.answers else example


@dataclass(frozen=True)
class _Asking:
    """Rows without answers, and what answers them.

    Attributes:
        keys: `row_digest` of each row.
        batch: rows that are asked at a time.
    """

    asker: Asker
    collator: Collator
    rows: Sequence[Row]
    keys: Sequence[str]
    batch: int

    def records(self, part: range, size: int) -> list[Record]:
        """What the model says to the rows of a part; asked as often as for one of `size` rows, if it is divided."""
        starts = range(part.start, part.stop, self.batch)
        times = -(-size // self.batch) if is_sharded(self.asker.model) else len(starts)
        found = list[Record]()
        for start in (starts[time % len(starts)] for time in range(times)):
            indices = range(start, min(start + self.batch, part.stop))
            inputs = self.collator.prompts([self.rows[i] for i in indices])
            answers = self.asker.answer({name: x.to(self.asker.model.device) for name, x in inputs.items()})
            for index, answer in zip(indices, answers, strict=True):
                record = {"row": self.rows[index].number, "id": self.keys[index], "prompt": self.rows[index].question}
                found.append(record | {"answer": answer.text, "stop": answer.stop, "error": None})
        return found[: len(part)]


def _circumstances(asking: _Asking, weights: str | None) -> dict[str, Any]:
    """Everything that the answers depend on."""
    collator = asking.collator
    template = getattr(collator.processor, "chat_template", None) or collator.tokenizer.chat_template
    return {
        "weights": weights,
        "system message": collator.system,
        "chat template": hashlib.sha256(str(template).encode()).hexdigest()[:16],
        "image processor": collator.processor.image_processor.to_dict(),
        "generation": {**GREEDY, "max_new_tokens": asking.asker.max_new_tokens},
        "questions": hashlib.sha256(json.dumps(asking.keys).encode()).hexdigest()[:16],
    }


def _answers(asking: _Asking, parts: BatchFolder) -> list[str]:
    """An answer for every row, in order. In each round, every process asks one part."""
    rank, count = world()
    own = dict[int, list[str]]()
    with ExitStack() as stack:
        with together():
            if is_first():
                stack.enter_context(parts.held())
        missing = from_first(parts.missing)
        rounds = range(0, len(missing), count)
        for start in track(rounds, "asking the base model", console=stderr(), disable=not (missing and is_first())):
            with together():
                turn = missing[start : start + count]
                if rank < len(turn) or is_sharded(asking.asker.model):  # then all must ask, whatever comes of it
                    part = turn[rank % len(turn)]
                    records = asking.records(parts.range(part), len(parts.range(0)))
                    own[part] = [record["answer"] for record in records]
                if rank < len(turn):
                    parts.commit(part, records)
        known = from_first(lambda: {part: _read(parts, part) for part in range(len(parts)) if part not in missing})
    for found in gathered(own):  # other machines may not see these files yet
        known |= found
    return [text for part in range(len(parts)) for text in known[part]]


def _read(parts: BatchFolder, part: int) -> list[str]:
    found: list[str] = pq.read_table(parts.path(part), columns=["answer"])["answer"].to_pylist()
    return found
