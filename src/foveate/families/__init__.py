"""Model families. One adapter probes any model; exceptions are one file each here, or classes that other packages name
under the entry-point group `foveate.families`."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from foveate.core.plugins import classes_of, with_installed
from foveate.errors import UnsupportedModelError
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
    return with_installed(_built_in(), GROUP, _checked, lambda kind: kind.model_types, "adapter for model type")


@cache
def _built_in() -> dict[str, type[Family]]:
    return {name: kind for kind in classes_of(__name__, __path__, Family) for name in kind.model_types}


def _checked(kind: Any) -> type[Family]:
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
