"""What benchmarks/plus.py and benchmarks/plus_rollouts.py share: questions, runs of `foveate train plus`, answers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import track

from foveate.core.method import Method
from foveate.data.boxes import normalize_boxes
from foveate.files.atomic import write_text
from foveate.glimpse import GlimpseModule, load_module
from foveate.inference.answer import Asker
from foveate.training.evidence import EvidenceBoxes

Samples = Sequence[Any]


def row(sample: Any, folder: Path, name: str) -> str:
    """A training question as a line of a table in `folder`, where its images are put."""
    names = [f"{name}-{number}.png" for number in range(len(sample.images))]
    for file, image in zip(names, sample.images, strict=True):
        image.save(folder / file)
    boxes = [list(map(list, own)) for own in sample.evidence]
    return json.dumps({"images": names, "question": sample.question, "answer": sample.answer, "boxes": boxes})


def with_background(module: str, folder: Path, max_keep: float | None, background: float) -> Path:
    """A copy of the module with another decision."""
    if not folder.exists():
        found = load_module(module)
        other = GlimpseModule(replace(found.config, max_keep=max_keep, background=background))
        other.load_state_dict(found.state_dict())
        other.save_pretrained(folder)
    return folder


def trainer_options(options: argparse.Namespace, **own: Any) -> list[str]:
    """Trainer settings of both benchmarks, and those of one."""
    values = {
        "beta": options.beta, "gradient_accumulation_steps": options.prompts, "learning_rate": options.rate,
        "max_completion_length": 8, "per_device_train_batch_size": options.group, "num_generations": options.group,
        "gradient_checkpointing": False, "disable_tqdm": True, **own,
    }  # fmt: skip
    return [part for name, value in values.items() for part in ("--set", f"{name}={value}")]


def to_evidence(batch: Samples, layer: int) -> EvidenceBoxes:
    """What leaves the evidence of every question alone."""
    return EvidenceBoxes(
        [
            [
                normalize_boxes(own, "pixel", width=image.width, height=image.height)
                for image, own in zip(sample.images, sample.evidence, strict=True)
            ]
            for sample in batch
        ],
        layer,
    )


def correct(
    asker: Asker, samples: Samples, size: int, pruned_by: Callable[[Samples], Method | None], name: str
) -> list[int]:
    """Which answers are right, asked in batches of `size`."""
    found: list[int] = []
    for start in track(range(0, len(samples), size), description=name):
        batch = samples[start : start + size]
        inputs = asker.questions([(sample.images, sample.question) for sample in batch])
        answers = asker.answer(inputs, pruned_by(batch))
        found += [int(answer.text == sample.answer) for answer, sample in zip(answers, batch, strict=True)]
    return found


def claim(out: Path, about: dict[str, Any]) -> None:
    """Refuse a folder with the training of other settings: it would be published under these."""
    note = out / "about.json"
    if out.exists() and (not note.is_file() or json.loads(note.read_text()) != about):
        raise SystemExit(f"{out} holds a run with other settings; choose another --out or remove it")
    write_text(note, json.dumps(about))
