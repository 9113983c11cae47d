"""Merging a LoRA adapter into its base model: the result is a stock checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

from foveate.errors import CheckpointError, ConfigurationError
from foveate.files.atomic import publish
from foveate.training.base import ADAPTER, load_merged, merged


def merge(model: str, adapter: Path, out: Path, dtype: str = "auto") -> Path:
    """Write `model` with `adapter` merged into its weights to the new folder `out`.

    Args:
        dtype: of the weights written; `auto` keeps the base checkpoint's.

    Raises:
        CheckpointError: the adapter is missing, damaged or another model's.
        ConfigurationError: `out` exists already.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigurationError(f"{out} exists and is not empty; choose another folder")
    if not (adapter / ADAPTER).is_file():
        raise CheckpointError(f"{adapter} holds no LoRA adapter (no {ADAPTER}); `foveate train plus` writes one")
    base, processor = load_merged(model, dtype)
    whole = merged(base, adapter)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a merge that was killed
    whole.save_pretrained(partial)
    processor.save_pretrained(partial)
    publish(*partial.glob("*.safetensors"))
    if out.exists():
        out.rmdir()
    partial.replace(out)
    return out
