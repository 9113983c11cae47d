"""Model families. A new family is one file here; `config.model_type` chooses it."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from inspect import isabstract

from torch import nn

from foveate.errors import UnsupportedModelError
from foveate.families.base import Family


@cache
def registry() -> dict[str, type[Family]]:
    """Adapters by `config.model_type`, found in this package."""
    found: dict[str, type[Family]] = {}
    for module in pkgutil.iter_modules(__path__):
        imported = importlib.import_module(f"{__name__}.{module.name}")
        for thing in vars(imported).values():
            if (
                isinstance(thing, type)
                and issubclass(thing, Family)
                and thing.__module__ == imported.__name__
                and not isabstract(thing)
            ):
                found.update(dict.fromkeys(thing.model_types, thing))
    return found


def adapt(model: nn.Module) -> Family:
    """The adapter of a model (also of one wrapped by PEFT).

    Raises:
        UnsupportedModelError: unknown family, or a model without the parts its family should have.
    """
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()  # type: ignore[operator]
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    family = registry().get(str(model_type))
    if family is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} (model_type {model_type!r}) is of no supported family; supported are "
            f"{', '.join(sorted(registry()))}. To add one, write an adapter of about a hundred lines in "
            "foveate/families/ (see llava.py)."
        )
    return family(model)
