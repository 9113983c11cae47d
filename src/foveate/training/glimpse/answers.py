"""Answers for questions that have none: what the unpruned base model says, remembered in a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import track

from foveate.data.rows import Row, Rows
from foveate.errors import DataError
from foveate.inference.answer import Asker
from foveate.training.glimpse.collate import Collator
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
    """
    if examples.answered:
        return examples
    missing = [i for i in range(len(examples)) if not examples[i].answers]
    known = _read(store)
    todo = [i for i in missing if _key(examples[i]) not in known]
    store.parent.mkdir(parents=True, exist_ok=True)
    with store.open("a", encoding="utf-8") as file:
        steps = range(0, len(todo), batch_size)
        for start in track(steps, "asking the base model", console=stderr(), disable=not todo):
            batch = [examples[i] for i in todo[start : start + batch_size]]
            for example, answer in zip(batch, _ask(base, collator, batch, max_new_tokens), strict=True):
                known[_key(example)] = answer
                row = {"row": example.number, "question": example.question, "answer": answer}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
    answers = {i: known[_key(examples[i])] for i in missing}
    filled = (_answered(examples[i], answers.get(i)) for i in range(len(examples)))
    answered = [example for example in filled if example.answer]
    if not answered:
        raise DataError("the base model gave no answer to any question; check model, images and system message")
    return answered


def _answered(example: Row, answer: str | None) -> Row:
    """With the base model's answer, where one was missing and it gave one."""
    return replace(example, answers=(answer,)) if answer else example


def _ask(base: Any, collator: Collator, batch: Sequence[Row], max_new_tokens: int) -> list[str]:
    inputs = {name: x.to(base.device) for name, x in collator.prompts(batch).items()}
    return [answer.text for answer in Asker(base, collator.processor, max_new_tokens).answer(inputs)]


def _key(example: Row) -> tuple[int, str]:
    return example.number, example.question


def _read(store: Path) -> dict[tuple[int, str], str]:
    """Answers given so far. A last line cut off by a kill is dropped, from the file too."""
    if not store.exists():
        return {}
    known, whole = {}, list[str]()
    for line in store.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
            known[row["row"], row["question"]] = row["answer"]
            whole.append(line)
        except (ValueError, KeyError):
            continue
    store.write_text("".join(line + "\n" for line in whole), encoding="utf-8")
    return known
