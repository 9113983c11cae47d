"""What supervised training and reinforcement learning share: settings, folders, how a run begins and ends."""

from __future__ import annotations

import errno
import json
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import EarlyStoppingCallback, set_seed

from foveate.data.boxes import BoxFormat
from foveate.data.reading import read_rows
from foveate.data.rows import Rows, Rules
from foveate.errors import ConfigurationError, OutputError
from foveate.files.atomic import write_text
from foveate.files.outputs import check_folder, check_packages
from foveate.training.checkpoints import last_checkpoint
from foveate.training.curves import draw
from foveate.training.identity import compare, differences, record, table_digest
from foveate.training.processes import divided, from_first, gathered, is_first, together
from foveate.training.rows import stderr, tracked

SUMMARY = "training.json"
STARTED = "run.json"
"""What a run was started with."""
CURVES = "curves.png"

DECISIVE = (
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed", "data_seed", "bf16", "fp16",
    "train_sampling_strategy",
)  # fmt: skip
"""Fields of a trainer's arguments that a run may not change on its way; how long it goes, it may."""

_FREE = {
    "out", "resume", "skip_bad", "attention", "arguments", "eval_data", "eval_limit", "patience", "judge", "model",
    "data", "start", "shard", "screen_file",
}  # fmt: skip
"""Settings that are not compared by name: they may change, or their content is compared."""


@dataclass(frozen=True)
class RunSettings:
    """What to train, on what, and where to put it.

    Attributes:
        model: base model: id, path or zoo name.
        data: see `data.reading.read_rows`; `limit` takes the first rows only.
        out: folder of the result and of its checkpoints.
        arguments: fields of the trainer's arguments that differ from the published ones.
        eval_data: as `data`, held out; `eval_limit` takes the first rows only. The best checkpoint on it is the result.
        patience: stop after so many evaluations without a better one; None: never.
        dtype: of the base model; `auto`: the checkpoint's on an accelerator, float32 on a CPU.
        shard: divide the frozen base model among the processes, see `sharding`.
        resume: go on from the last complete checkpoint in `out`, if there is one.
    """

    model: str
    data: str
    out: Path
    limit: int | None = None
    box_format: BoxFormat = "pixel"
    skip_bad: bool = False
    system: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    eval_data: str | None = None
    eval_limit: int | None = 200
    patience: int | None = None
    dtype: str = "auto"
    attention: str = "sdpa"
    shard: bool = False
    resume: bool = False


def with_evaluation(settings: RunSettings, given: dict[str, Any], metric: str) -> dict[str, Any]:
    """Trainer arguments with what held-out data ask for: evaluations at the checkpoints, of which the best is taken.

    Args:
        metric: that decides; of a loss less is better.

    Raises:
        ConfigurationError: patience without held-out data.
    """
    if settings.eval_data is None:
        if settings.patience is not None:
            raise ConfigurationError("stopping early needs held-out data: give --eval-data")
        return given
    given = {"eval_strategy": "steps", "eval_steps": given["save_steps"], **given}
    aligned = given["eval_strategy"] == "steps" and int(given["save_steps"]) % int(given["eval_steps"]) == 0
    if settings.patience is not None and not aligned:
        raise ConfigurationError("stopping early needs save_steps to be a multiple of eval_steps")
    best = {"load_best_model_at_end": aligned, "metric_for_best_model": metric}
    return {**best, "greater_is_better": "loss" not in metric, **given} if aligned else given


def begin(
    settings: RunSettings,
    arguments: Any,
    weights: str,
    rules: Rules,
    published: str,
    first: int = 0,
    names: Sequence[str] = (),
) -> tuple[Path | None, Rows]:
    """What can be checked before models are loaded: the checkpoint to go on from, and the rows.

    Args:
        weights: file of a finished run.
        published: how much the paper's run learned from, to compare with.
        first: row to begin with.
        names: see `check_resumed`.
    """
    check_packages("Training", "train", "matplotlib")
    checkpoint = from_first(lambda: place(settings, weights))
    check_same(settings.data)
    rows = read_rows(settings.data, rules, settings.limit, first, tracked, divided)
    with together():
        check_resumed(settings, checkpoint, arguments, names)
    set_seed(arguments.seed)
    if is_first():
        stderr().print(batch_line(arguments, len(rows), published), markup=False, highlight=False)
    return checkpoint, rows


def check_same(data: str) -> None:
    """Refuse a table that is not the same for all processes.

    Raises:
        ConfigurationError: naming it.
    """
    with together():
        digest = table_digest(data)
    if len(set(gathered(digest))) > 1:
        raise ConfigurationError(f"{data} is not the same file for all processes; copy it to all machines")


def batch_line(arguments: Any, rows: int, published: str) -> str:
    """How much a step learns from, and how fast, beside what was published."""
    size, parts, processes = arguments.train_batch_size, arguments.gradient_accumulation_steps, arguments.world_size
    return (
        f"{rows:,} rows; global batch {size * parts * processes} ({size} x {parts} accumulated x {processes} "
        f"process{'es' if processes > 1 else ''}), learning rate {arguments.learning_rate:g} "
        f"(published: {published})"
    )


def run(trainer: Any, settings: RunSettings, checkpoint: Path | None) -> dict[str, float]:
    """Train to the end, write the result and the picture of how it came about; returns the final metrics."""
    if settings.patience is not None:
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=settings.patience))
    with told_of_a_full_disk(settings.out):
        result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        metrics = dict(result.metrics)
        if settings.eval_data is not None:
            metrics |= _evaluated(trainer) or trainer.evaluate()
        trainer.save_model()
        if trainer.is_world_process_zero():
            draw(trainer.state.log_history, settings.out / CURVES)
    return metrics


def _evaluated(trainer: Any) -> dict[str, float]:
    """Metrics of the evaluation of the model as it is now, if there was one."""
    state = trainer.state
    taken = trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None
    step = state.best_global_step if taken else state.global_step
    for entry in reversed(state.log_history):
        found = {name: value for name, value in entry.items() if name.startswith("eval_")}
        if entry["step"] == step and found:
            return found
    return {}


def place(settings: RunSettings, weights: str) -> Path | None:
    """The checkpoint to resume from; refuses to train over the results of an earlier run, whose file is `weights`.

    Raises:
        OutputError: nothing can be written to the folder.
        ConfigurationError: it holds another run.
    """
    check_folder(settings.out)
    checkpoint = last_checkpoint(settings.out, weights)
    if settings.resume:
        return checkpoint
    if checkpoint is not None or (settings.out / weights).exists():
        raise ConfigurationError(
            f"{settings.out} already holds a training run; go on with --resume, or choose another folder"
        )
    return None


def check_resumed(settings: RunSettings, checkpoint: Path | None, arguments: Any, names: Sequence[str] = ()) -> None:
    """Refuse to go on from a checkpoint of a run that was started with something else; else note what this one is.

    Called before models are loaded, by every process.

    Args:
        names: fields of `arguments` that decide the result, besides `DECISIVE`.

    Raises:
        ConfigurationError: naming every difference.
    """
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    plain = {name: x for name, x in asdict(settings).items() if name not in _FREE}
    if not isinstance(plain.get("module"), dict):
        plain.pop("module", None)  # a folder, whose weights are compared
    judge = getattr(settings, "judge", None) or {}
    plain |= {"judge": {name: judge[name] for name in ("model", "prompt") if name in judge}}
    decisive = {name: getattr(arguments, name, None) for name in (*DECISIVE, *names)}
    started = {"settings": plain, "data": table_digest(settings.data), "arguments": {**decisive, "global_batch": batch}}
    _compare_or_record(settings.out / STARTED, checkpoint, started)


def check_weights(settings: RunSettings, checkpoint: Path | None, **models: str | None) -> None:
    """The same for the models that were loaded: their `fingerprint` by name; None: there is none.

    Raises:
        ConfigurationError: a model has other weights than when the run was started, or in another process.
    """
    for rank, other in enumerate(gathered(models)):
        if found := differences(other, models):
            raise ConfigurationError(
                f"process {rank} has loaded other weights ({'; '.join(found)} here); give all machines the same files"
            )
    _compare_or_record(settings.out / STARTED, checkpoint, {"weights": models})


def _compare_or_record(path: Path, checkpoint: Path | None, values: dict[str, Any]) -> None:
    if checkpoint is not None:
        compare(path, values)
    elif is_first():
        record(path, values)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXTS = ("No space left on device", "Disk quota exceeded", "File too large", "PytorchStreamWriter failed")


@contextmanager
def told_of_a_full_disk(out: Path) -> Iterator[None]:
    """Say that a checkpoint could not be written, and how a run goes on, instead of what some library raises.

    Raises:
        OutputError: the disk is full, or a quota or limit is reached.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        full = getattr(error, "errno", None) in _FULL or any(text in str(error) for text in _FULL_TEXTS)
        if not full:
            raise
        raise OutputError(
            f"{out}: the disk is full, or a limit is reached ({str(error).splitlines()[0]}). Make room and go on with "
            "--resume: the last complete checkpoint counts."
        ) from error


def write_summary(
    settings: RunSettings, arguments: Any, names: Sequence[str], more: dict[str, Any], packages: Sequence[str] = ()
) -> None:
    """What was trained how, where and with what result, beside the weights.

    Args:
        names: fields of `arguments` to mention.
        more: results.
        packages: whose versions matter too.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    shown = asdict(settings)
    summary = {
        "settings": {name: value for name, value in shown.items() if name not in ("out", "resume")},
        "arguments": {name: getattr(arguments, name) for name in (*names, "seed", "max_steps", "bf16")},
        **more,
        "processes": arguments.world_size,
        "device": str(device) if device else platform.processor() or platform.machine(),
        "versions": {
            **{name: version(name) for name in ("foveate", "torch", "transformers", *packages)},
            "python": platform.python_version(),
        },
    }
    write_text(settings.out / SUMMARY, json.dumps(summary, indent=2, default=str) + "\n")
