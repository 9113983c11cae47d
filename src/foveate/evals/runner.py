"""Ask the model every question under every setting, and remember the answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import foveate
from foveate.core.method import Method
from foveate.data.tasks import DataError, Sample, Task
from foveate.evals.store import Record, Store
from foveate.inference.batches import build_batch, generate
from foveate.specs.settings import Setting
from foveate.trace.records import PrefillTrace


@dataclass
class Run:
    """What happened.

    Attributes:
        skipped: messages of the samples that were left out.
        computed: answers computed in this call (the others were in the store).
    """

    skipped: list[str]
    computed: int = 0


@dataclass(frozen=True)
class Subject:
    """A model with its processor, and how long its answers may be."""

    model: Any
    processor: Any
    max_new_tokens: int = 32


def identity(name: str, subject: Subject, task: Task, prompt: str) -> dict[str, Any]:
    """What must agree for two answers to be comparable; goes to the head of the results file."""
    model = subject.model
    return {
        "model": name,
        "weights": fingerprint(model),
        "data": task.name,
        "prompt": prompt,
        "max_new_tokens": subject.max_new_tokens,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
    }


def fingerprint(model: Any) -> str:
    """Digest of a few numbers of every parameter: another checkpoint of the same name is noticed."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(str(parameter.detach().flatten()[:8].tolist()).encode())
    return digest.hexdigest()[:16]


def run(
    subject: Subject,
    task: Task,
    settings: Sequence[Setting],
    store: Store,
    batch: int = 1,
    skip_bad: bool = False,
    on_answers: Callable[[int], None] = lambda n: None,
) -> Run:
    """Answer what the store does not hold yet.

    All settings see a batch before the next batch comes, so that their times can be compared. A batch whose
    answers are partly stored is computed whole: its composition must not depend on when a run was killed.

    Args:
        batch: questions per batch (padded on the left).
        skip_bad: leave samples with unreadable images out and count them, instead of stopping.
        on_answers: told how many (setting, sample) pairs are done, stored ones included.

    Raises:
        DataError: an unreadable image, unless `skip_bad`.
    """
    methods = [(setting.describe(), setting, setting.make()) for setting in settings]
    done, warm = Run([]), False
    for start in range(0, len(task.ids), batch):
        ids = task.ids[start : start + batch]
        missing = [m for m in methods if any((m[0], sample) not in store for sample in ids)]
        rows = _read(task.samples[start : start + batch], skip_bad, done.skipped) if missing else []
        on_answers(len(ids) * (len(methods) - (len(missing) if rows else 0)))
        if not rows:
            continue
        inputs = build_batch(subject.model, subject.processor, [(images, s.question) for s, images in rows])
        if not warm:
            _warm_up(subject, inputs, [method for _, _, method in methods])
            warm = True
        for key, setting, method in missing:
            texts, trace = answer(subject, inputs, method)
            store.append(_records(key, setting, [s for s, _ in rows], texts, trace))
            done.computed += len(rows)
            on_answers(len(ids))
    return done


def answer(subject: Subject, inputs: dict[str, Tensor], method: Method | None) -> tuple[list[str], PrefillTrace]:
    """Greedy answers to a batch and the trace of its prefill."""
    with foveate.prune(subject.model, method) as trace:
        texts = generate(subject.model, subject.processor, inputs, subject.max_new_tokens)
    return texts, trace.last


def _warm_up(subject: Subject, inputs: dict[str, Tensor], methods: Sequence[Method | None]) -> None:
    """One-off costs of a first call would be counted against the first sample's prefill."""
    short = Subject(subject.model, subject.processor, 1)
    for method in methods:
        answer(short, inputs, method)


def _read(samples: Sequence[Sample], skip_bad: bool, skipped: list[str]) -> list[tuple[Sample, list[Any]]]:
    rows = []
    for sample in samples:
        try:
            rows.append((sample, sample.images()))
        except DataError as error:
            if not skip_bad:
                raise DataError(f"{error} Use --skip-bad to leave such samples out and count them.") from error
            skipped.append(str(error))
    return rows


def _records(
    key: str, setting: Setting, samples: Sequence[Sample], texts: Sequence[str], trace: PrefillTrace
) -> list[Record]:
    rows = len(samples)
    times = {"vision_ms": trace.vision.ms, "select_ms": trace.selecting.ms, "prefill_ms": trace.prefill.ms}
    return [
        {
            "setting": key,
            "name": setting.name,
            "sample": sample.id,
            "type": sample.type,
            "question": sample.question,
            "answers": list(sample.answers),
            "prediction": text,
            **_tokens(trace, number),
            "kv_bytes": trace.kv_bytes // rows,
            "batch": rows,
            **{name: round(value / rows, 4) for name, value in times.items()},
        }
        for number, (sample, text) in enumerate(zip(samples, texts, strict=True))
    ]


def _tokens(trace: PrefillTrace, row: int) -> dict[str, Any]:
    """Visual tokens of a row: unpruned, and on average over the layers."""
    groups = [group for group in trace.groups if group.row == row]
    total = sum(group.shown for group in groups)
    return {"visual_tokens": total, "kept_tokens": sum(trace.alive_per_layer(row)) / trace.layers}
