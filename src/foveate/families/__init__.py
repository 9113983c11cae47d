"""Model families. One adapter probes any model; exceptions are one file each here, or classes that other packages name
under the entry-point group `foveate.families`."""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from torch import nn

from foveate.errors import ConfigurationError, UnsupportedModelError
from foveate.families.base import Family

GROUP = "foveate.families"
"""Entry points of this group name a subclass of `Family` with `model_types`: `"package.module:Class"`."""


@cache
def registry() -> dict[str, type[Family]]:
    """Adapters of exceptions by `config.model_type`: those of this package and of installed ones.

    An entry point that cannot be loaded is left out with a warning.

    Raises:
        ConfigurationError: two packages serve one model type.
    """
    found = dict(_built_in())
    owners = dict.fromkeys(found, "foveate")
    for entry in entry_points(group=GROUP):
        owner = entry.dist.name if entry.dist is not None else entry.value.partition(":")[0]
        try:
            kind = _load(entry)
        except Exception as error:  # whatever it is, it must not take the others with it
            warnings.warn(
                f"The family {entry.name!r} of {owner} ({entry.value}) cannot be loaded and is left out: {error!r}.",
                stacklevel=2,
            )
            continue
        for model_type in kind.model_types:
            if found.get(model_type, kind) is not kind:
                raise ConfigurationError(
                    f"{owners[model_type]} and {owner} both have an adapter for model type {model_type!r}; uninstall "
                    "one of them."
                )
            found[model_type], owners[model_type] = kind, owners.get(model_type, owner)
    return found


@cache
def _built_in() -> dict[str, type[Family]]:
    found: dict[str, type[Family]] = {}
    for module in pkgutil.iter_modules(__path__):
        imported = importlib.import_module(f"{__name__}.{module.name}")
        for thing in vars(imported).values():
            if isinstance(thing, type) and issubclass(thing, Family) and thing.__module__ == imported.__name__:
                found.update(dict.fromkeys(thing.model_types, thing))
    return found


def _load(entry: EntryPoint) -> type[Family]:
    kind = entry.load()
    if not (isinstance(kind, type) and issubclass(kind, Family)):
        raise TypeError("it is no subclass of foveate.families.base.Family")
    if not kind.model_types:
        raise TypeError("its `model_types` are empty, so it serves no model")
    return kind


def adapt(model: nn.Module) -> Family:
    """The adapter of a model (also of one wrapped by PEFT).

    Raises:
        UnsupportedModelError: a part was not found, or images do not enter as tokens of a decoder.
    """
    unwrap: Any = getattr(model, "get_base_model", None)
    model = model if unwrap is None else unwrap()
    config = getattr(model, "config", None)
    if config is None:
        raise UnsupportedModelError(f"{type(model).__name__} is no transformers model: it has no configuration.")
    return registry().get(str(getattr(config, "model_type", None)), Family)(model)
