"""Pruning methods. A new method is one file here: the registry, the CLI and the docs find it."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from inspect import isabstract
from typing import Any

from foveate.core.method import Method
from foveate.errors import ConfigurationError


@cache
def registry() -> dict[str, type[Method]]:
    """All methods of this package by name."""
    found: dict[str, type[Method]] = {}
    for module in pkgutil.iter_modules(__path__):
        imported = importlib.import_module(f"{__name__}.{module.name}")
        for thing in vars(imported).values():
            own = isinstance(thing, type) and thing.__module__ == imported.__name__
            if own and issubclass(thing, Method) and not isabstract(thing):
                found[thing.name] = thing
    return dict(sorted(found.items()))


def find(name: str) -> type[Method]:
    """A method class by its registry name or an unambiguous beginning of it (`glimpse`).

    Raises:
        ConfigurationError: unknown name; the message lists them all.
    """
    wanted = name.lower().replace("-", "_")
    found = [key for key in registry() if key == wanted] or [key for key in registry() if key.startswith(wanted)]
    if len(found) != 1:
        raise ConfigurationError(f"There is no method {name!r}; there are {', '.join(registry())}.")
    return registry()[found[0]]


def make(name: str, **parameters: Any) -> Method:
    """A configured method by its registry name, e.g. `make("vitcop", keep=1/9)`.

    Raises:
        ConfigurationError: unknown name or parameter (both lists are in the message).
    """
    kind = find(name)
    known = list(getattr(kind, "__dataclass_fields__", {}))
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ConfigurationError(f"{kind.name} has no parameter {', '.join(unknown)}; it has {', '.join(known)}.")
    return kind(**parameters)


def __getattr__(name: str) -> Any:
    """`from foveate.methods import ViTCoP` without listing the classes here."""
    if not name.startswith("_"):
        for kind in registry().values():
            if kind.__name__ == name:
                return kind
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return ["find", "make", "registry", *(kind.__name__ for kind in registry().values())]
