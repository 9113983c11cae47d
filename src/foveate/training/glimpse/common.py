"""What supervised training and reinforcement learning share: settings, the base model, folders, the summary."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from foveate.data.boxes import BoxFormat
from foveate.errors import ConfigurationError
from foveate.files.atomic import write_text
from foveate.files.outputs import check_folder
from foveate.inference.loading import load
from foveate.training.glimpse.trainer import last_checkpoint

SUMMARY = "training.json"


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
