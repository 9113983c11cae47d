"""Arguments of transformers-like trainers from plain values, as they come from a command line or a YAML file."""

from __future__ import annotations

import json
from argparse import ArgumentError
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

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
    flat = [part for name, value in values.items() if value is not None for part in _option(name, value)]
    parser: Any = HfArgumentParser(kind)
    parser.exit_on_error = False
    try:
        (arguments,) = parser.parse_args_into_dataclasses(flat)
    except (ArgumentError, SystemExit, ValueError, TypeError) as error:
        raise ConfigurationError(f"training arguments: {error}") from error
    return arguments


def _option(name: str, value: Any) -> list[str]:
    if isinstance(value, list | tuple):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"]
