"""Ask the model every question under every setting, and remember the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from foveate.core.method import Method
from foveate.data.rows import Row, Rows
from foveate.evals.questions import prepare
from foveate.evals.store import Record, Store
from foveate.inference.answer import Answer, Asker
from foveate.inference.weights import fingerprint
from foveate.specs.settings import Setting


@dataclass
class Answered:
    """What happened.

    Attributes:
        skipped: messages of the samples that were left out.
        computed: answers computed in this call (the others were in the store).
    """

    skipped: list[str]
    computed: int = 0


def identity(name: str, asker: Asker, task: Rows, prompt: str) -> dict[str, Any]:
    """What must agree for two answers to be comparable; goes to the head of the results file."""
    model = asker.model
    return {
        "model": name,
        "weights": fingerprint(model),
        "data": task.name,
        "prompt": prompt,
        "max_new_tokens": asker.max_new_tokens,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
    }


def run(
    asker: Asker,
    task: Rows,
    settings: Sequence[Setting],
    store: Store,
    batch: int = 1,
    skip_bad: bool = False,
    on_answers: Callable[[int], None] = lambda n: None,
    warm_up: bool = True,
) -> Answered:
    """Answer what the store does not hold yet.

    All settings see a batch before the next batch comes, so that their times can be compared. A batch whose
    answers are partly stored is computed whole: its composition must not depend on when a run was killed.

    Args:
        batch: questions per batch (padded on the left).
        skip_bad: leave samples that cannot be asked out and count them, instead of stopping.
        on_answers: told how many (setting, sample) pairs are done, stored ones included.
        warm_up: run every setting once before the first batch; only times need it.

    Raises:
        DataError: a sample that cannot be asked, unless `skip_bad`.
    """
    methods = [(setting.describe(), setting, setting.make()) for setting in settings]
    done, warm = Answered([]), not warm_up
    for start in range(0, len(task.ids), batch):
        some = task[start : start + batch]
        ids = some.ids
        missing = [m for m in methods if any((m[0], sample) not in store for sample in ids)]
        rows, inputs = prepare(asker, some, skip_bad, done.skipped) if missing else ([], {})
        on_answers(len(ids) * (len(methods) - (len(missing) if rows else 0)))
        if not rows:
            continue
        if not warm:
            _warm_up(asker, inputs, [method for _, _, method in methods])
            warm = True
        for key, setting, method in missing:
            answers = asker.answer(inputs, method)
            store.append(_records(key, setting, rows, answers))
            done.computed += len(rows)
            on_answers(len(ids))
    return done


def _warm_up(asker: Asker, inputs: dict[str, Tensor], methods: Sequence[Method | None]) -> None:
    """One-off costs of a first call would be counted against the first sample's prefill."""
    for method in methods:
        asker.answer(inputs, method, max_new_tokens=1)


def _records(key: str, setting: Setting, samples: Sequence[Row], answers: Sequence[Answer]) -> list[Record]:
    rows, trace = len(samples), answers[0].prefill
    times = {"vision_ms": trace.vision.ms, "select_ms": trace.selecting.ms, "prefill_ms": trace.prefill.ms}
    return [
        {
            "setting": key,
            "name": setting.name,
            "sample": sample.id,
            "type": sample.type,
            "question": sample.question,
            "answers": list(sample.answers),
            "prediction": answer.text,
            "visual_tokens": answer.visual_tokens,
            "kept_tokens": answer.kept_tokens,
            "left_tokens": answer.left_tokens,
            "kv_bytes": trace.kv_bytes // rows,
            "batch": rows,
            **{name: round(value / rows, 4) for name, value in times.items()},
        }
        for sample, answer in zip(samples, answers, strict=True)
    ]
