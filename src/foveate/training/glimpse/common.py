"""What supervised training and reinforcement learning share: settings, the base model, folders, the summary."""

from __future__ import annotations

import errno
import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from foveate.data.boxes import BoxFormat
from foveate.errors import ConfigurationError, OutputError
from foveate.files.atomic import write_text
from foveate.files.outputs import check_folder
from foveate.inference.loading import load
from foveate.inference.weights import fingerprint
from foveate.training.glimpse.trainer import last_checkpoint
from foveate.training.identity import compare, record, table_digest

SUMMARY = "training.json"
STARTED = "run.json"
"""What a run was started with."""

DECISIVE = (
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed", "data_seed", "bf16", "fp16",
)  # fmt: skip
"""Fields of a trainer's arguments that a run may not change on its way; how long it goes, it may."""

_FREE = {
    "out",
    "resume",
    "skip_bad",
    "attention",
    "arguments",
    "eval_data",
    "eval_limit",
    "judge",
    "model",
    "data",
    "start",
}
"""Settings that are not compared by name: they may change, or their content is compared."""


@dataclass(frozen=True)
class RunSettings:
    """What to train, on what, and where to put it.

    Attributes:
        model: base model: id, path or zoo name.
        data: see `data.reading.read_rows`; `limit` takes the first rows only.
        out: folder of the result and of its checkpoints.
        arguments: fields of the trainer's arguments that differ from the published ones.
        dtype: of the base model; `auto`: the checkpoint's on an accelerator, float32 on a CPU.
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
    dtype: str = "auto"
    attention: str = "sdpa"
    resume: bool = False


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


def check_weights(settings: RunSettings, checkpoint: Path | None, **models: Any) -> None:
    """The same for the models that were loaded, by name; None: there is none.

    Raises:
        ConfigurationError: a model has other weights than when the run was started.
    """
    found = {name: None if model is None else fingerprint(model) for name, model in models.items()}
    _compare_or_record(settings.out / STARTED, checkpoint, {"weights": found})


def _compare_or_record(path: Path, checkpoint: Path | None, values: dict[str, Any]) -> None:
    if checkpoint is not None:
        compare(path, values)
    elif os.environ.get("RANK", "0") == "0":
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


def load_base(settings: RunSettings) -> tuple[Any, Any]:
    """The base model, on the CPU (the Trainer knows which device belongs to this process), and its processor."""
    automatic = "auto" if torch.accelerator.is_available() else "float32"
    return load(
        settings.model,
        dtype=automatic if settings.dtype == "auto" else settings.dtype,
        device="cpu",
        attn_implementation=settings.attention,
    )


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
