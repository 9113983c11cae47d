"""The base model of a run: a checkpoint, or an adapter that is merged into the checkpoint it was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from foveate.errors import CheckpointError, MissingExtraError
from foveate.inference.loading import load
from foveate.training.runs import RunSettings

ADAPTER = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"


def load_base(settings: RunSettings) -> tuple[Any, Any]:
    """The base model, on the CPU (the Trainer knows which device belongs to this process), and its processor.

    At no time are there two copies of the weights; where their dtype is that of the file, it is mapped, so that all
    processes of a machine share one.

    Raises:
        CheckpointError: nothing there, or an adapter that does not fit its model.
    """
    automatic = "auto" if torch.accelerator.is_available() else "float32"
    dtype = automatic if settings.dtype == "auto" else settings.dtype
    return load_merged(settings.model, dtype, settings.attention)


def load_merged(name: str, dtype: str, attention: str | None = None) -> tuple[Any, Any]:
    """The model of a checkpoint or adapter folder, on the CPU, and its processor.

    Raises:
        CheckpointError: nothing there, or an adapter that does not fit its model.
    """
    folder = Path(name)
    adapted = (folder / _CONFIG).is_file() and not (folder / "config.json").is_file()
    source = _base_of(folder) if adapted else name
    model, processor = load(source, dtype=dtype, device="cpu", attn_implementation=attention)
    return (merged(model, folder) if adapted else model), processor


def _base_of(adapter: Path) -> str:
    """The checkpoint that an adapter was trained on."""
    path = adapter / _CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not say which model the adapter belongs to ({error!r}).") from error
    if not found:
        raise CheckpointError(f"{path} does not say which model the adapter belongs to; merge it with `foveate merge`.")
    return str(found)


def merged(base: Any, adapter: Path) -> Any:
    """`base` with a LoRA adapter merged into its weights.

    Raises:
        CheckpointError: the adapter is damaged or another model's.
        MissingExtraError: PEFT is not installed.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingExtraError("an adapter needs PEFT: pip install 'foveate[train]'") from error
    try:
        return PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        raise CheckpointError(
            f"the adapter in {adapter} does not fit {base.config.model_type} model: {str(error).splitlines()[0]} "
            "Merge it into the model it was trained on."
        ) from error
