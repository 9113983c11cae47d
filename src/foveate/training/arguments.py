"""Arguments of transformers-like trainers from plain values, as they come from a command line or a YAML file."""

from __future__ import annotations

import json
import os
from argparse import ArgumentError
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

import torch
from transformers import HfArgumentParser

from foveate.errors import ConfigurationError

T = TypeVar("T")


def parse_arguments(kind: type[T], values: Mapping[str, Any]) -> T:
    """A `TrainingArguments` or a subclass; values may be strings.

    Raises:
        ConfigurationError: an unknown name or a value of the wrong kind.
    """
    if unknown := values.keys() - {f.name for f in fields(kind)}:  # type: ignore[arg-type]
        raise ConfigurationError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}")
    values = _on_cpu(values)
    flat = [part for name, value in values.items() if value is not None for part in _option(name, value)]
    parser: Any = HfArgumentParser(kind)
    parser.exit_on_error = False
    try:
        (arguments,) = parser.parse_args_into_dataclasses(flat)
    except (ArgumentError, SystemExit, ValueError, TypeError) as error:
        raise ConfigurationError(f"training arguments: {error}") from error
    _check_together(arguments)
    return arguments


def _on_cpu(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without an accelerator training is on the CPU, which must be said: else processes do not find each other."""
    if torch.accelerator.is_available() or values.get("use_cpu") is not None:
        return values
    return {**values, "use_cpu": True}


def _check_together(arguments: Any) -> None:
    """Several processes that do not know of each other would each train a model of their own, in silence.

    Raises:
        ConfigurationError: a launcher started several, and the arguments do not join them, or FSDP on a CPU.
    """
    if arguments.fsdp and not torch.accelerator.is_available():
        raise ConfigurationError(
            "fsdp: on a CPU accelerate divides no model and would train whole copies without a word; leave it out "
            "(`foveate train glimpse --shard` divides the base model on any device)"
        )
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and arguments.world_size != processes:
        raise ConfigurationError(
            f"{processes} processes were started, but these arguments let each of them train by itself "
            f"({arguments.parallel_mode.value}); on a CPU leave use_cpu at True, else check the launcher"
        )


def _option(name: str, value: Any) -> list[str]:
    if isinstance(value, list | tuple):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"]
