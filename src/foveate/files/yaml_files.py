"""Configuration files: reading YAML, and refusing keys that a dataclass does not have."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from foveate.errors import FoveateError


def read_yaml(file: Path, error: type[FoveateError]) -> Any:
    """The content of a YAML file; `error` is raised where it cannot be read."""
    import yaml

    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as found:
        raise error(f"{file} cannot be read: {found.strerror}") from found
    except yaml.YAMLError as found:
        raise error(f"{file} is not YAML: {found}") from found


def check_mapping(raw: Any, where: str, error: type[FoveateError]) -> None:
    """Raise `error` unless `raw` is a mapping."""
    if not isinstance(raw, dict):
        raise error(f"{where}: expected keys and values, found {type(raw).__name__}")


def check_keys(kind: type, given: Iterable[str], where: str, error: type[FoveateError]) -> None:
    """Raise `error` for keys that the dataclass `kind` does not have, or must have and are absent."""
    names = set(given)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if unknown := sorted(names - set(fields)):
        raise error(f"{where}: unknown {', '.join(unknown)}; known are {', '.join(fields)}")
    missing = dataclasses.MISSING
    needed = [n for n, f in fields.items() if f.default is missing and f.default_factory is missing]
    if absent := [n for n in needed if n not in names]:
        raise error(f"{where}: {', '.join(absent)} missing")
