"""Answers for questions that have none: what the unpruned base model says, remembered in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.progress import track

from foveate.data.rows import Row, Rows
from foveate.errors import ConfigurationError, DataError
from foveate.files.atomic import write_text
from foveate.inference.answer import GREEDY, Asker
from foveate.inference.weights import fingerprint
from foveate.training.glimpse.collate import Collator
from foveate.training.identity import differences, plain, row_digest
from foveate.training.rows import stderr


def fill_answers(
    base: Any,
    collator: Collator,
    examples: Rows,
    store: Path,
    *,
    max_new_tokens: int = 64,
    batch_size: int = 8,
) -> Sequence[Row]:
    """Examples with every missing answer replaced by the base model's own greedy answer.

    Answers are appended to `store` (JSON lines) batch by batch, so that an interrupted run goes on where it
    stopped. An example for which the model says nothing is left out.

    Raises:
        ConfigurationError: the store holds answers of another model, about other images, or asked otherwise.
        DataError: the model says nothing to any question.
    """
    if examples.answered:
        return examples
    asker = Asker(base, collator.processor, max_new_tokens)
    missing = {i: row for i in range(len(examples)) if not (row := examples[i]).answers}
    with ThreadPoolExecutor() as pool:
        keys = dict(zip(missing, pool.map(row_digest, missing.values()), strict=True))
    answers = AnswerStore.open(store, _circumstances(asker, collator))
    todo = [i for i, row in missing.items() if not answers.knows(row, keys[i])]
    for start in track(range(0, len(todo), batch_size), "asking the base model", console=stderr(), disable=not todo):
        batch = todo[start : start + batch_size]
        inputs = collator.prompts([missing[i] for i in batch])
        found = asker.answer({name: x.to(base.device) for name, x in inputs.items()})
        answers.add([(missing[i], keys[i], answer.text) for i, answer in zip(batch, found, strict=True)])
    texts = {i: answers.texts[row.number] for i, row in missing.items()}
    filled = (_answered(examples[i], texts.get(i)) for i in range(len(examples)))
    answered = [example for example in filled if example.answer]
    if not answered:
        raise DataError("the base model gave no answer to any question; check model, images and system message")
    return answered


def _answered(example: Row, answer: str | None) -> Row:
    """With the base model's answer, where one was missing and it gave one."""
    return replace(example, answers=(answer,)) if answer else example


def _circumstances(asker: Asker, collator: Collator) -> dict[str, Any]:
    """Everything besides image and question that an answer depends on."""
    template = getattr(collator.processor, "chat_template", None) or collator.tokenizer.chat_template
    return plain(
        {
            "weights": fingerprint(asker.model),
            "system message": collator.system,
            "chat template": hashlib.sha256(str(template).encode()).hexdigest()[:16],
            "image processor": collator.processor.image_processor.to_dict(),
            "generation": {**GREEDY, "max_new_tokens": asker.max_new_tokens},
        }
    )


@dataclass
class AnswerStore:
    """Answers given so far, in a file whose first line says how they were asked for.

    Attributes:
        texts: answer by number of the row.
        keys: `row_digest` by number of the row.
    """

    path: Path
    texts: dict[int, str] = field(default_factory=dict)
    keys: dict[int, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, circumstances: dict[str, Any]) -> AnswerStore:
        """Read a file, or begin one. A last line cut off by a kill is dropped, from the file too.

        Raises:
            ConfigurationError: naming what differs from the circumstances of the answers in it.
        """
        answers = cls(path)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        whole = [row for line in lines if (row := _row(line)) is not None]
        if whole:
            if found := differences(whole[0].get("asked", {}), circumstances):
                raise ConfigurationError(
                    f"{path} holds answers that were asked for otherwise: {'; '.join(found)}. Ask again in another "
                    "folder, or remove the file."
                )
            for row in whole[1:]:
                answers.texts[row["row"]], answers.keys[row["row"]] = row["answer"], row["key"]
        else:
            whole = [{"asked": circumstances}]
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in whole))
        return answers

    def knows(self, row: Row, key: str) -> bool:
        """Whether this question has been asked.

        Raises:
            ConfigurationError: another question, or one about other images, was asked under its number.
        """
        if row.number not in self.keys:
            return False
        if self.keys[row.number] != key:
            raise ConfigurationError(
                f"{self.path} holds an answer to row {row.number} of other data: its question or its images were not "
                f"those of {row.where}. Ask again in another folder, or remove the file."
            )
        return True

    def add(self, found: Sequence[tuple[Row, str, str]]) -> None:
        """Remember answers to questions with these keys."""
        with self.path.open("a", encoding="utf-8") as file:
            for row, key, text in found:
                self.texts[row.number], self.keys[row.number] = text, key
                entry = {"row": row.number, "key": key, "question": row.question, "answer": text}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    known = isinstance(row, dict) and ("asked" in row or {"row", "key", "answer"} <= row.keys())
    return row if known else None
