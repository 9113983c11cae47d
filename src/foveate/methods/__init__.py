"""Pruning methods. A new method is one file here, or a class that another package names under the entry-point group
`foveate.methods`: the registry, the CLI and the docs find it."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from functools import cache
from inspect import isabstract
from typing import Any

from foveate.core.method import Method
from foveate.core.plugins import classes_of, with_installed
from foveate.errors import ConfigurationError

GROUP = "foveate.methods"
"""Entry points of this group name a concrete subclass of `Method`: `"package.module:Class"`."""


@cache
def registry() -> dict[str, type[Method]]:
    """All methods by name: those of this package, and those that installed packages name as entry points.

    An entry point that cannot be loaded is left out with a warning.

    Raises:
        ConfigurationError: two packages give methods of one name.
    """
    remedy = "uninstall one of them, or give the class another `name`"
    found = with_installed(_built_in(), GROUP, _checked, lambda kind: [kind.name], "method", remedy)
    return dict(sorted(found.items()))


@cache
def _built_in() -> dict[str, type[Method]]:
    return {kind.name: kind for kind in classes_of(__name__, __path__, Method) if not isabstract(kind)}


def _checked(kind: Any) -> type[Method]:
    if not (isinstance(kind, type) and issubclass(kind, Method)) or isabstract(kind):
        raise TypeError("it is no concrete subclass of foveate.Method")
    if not dataclasses.is_dataclass(kind) or not kind.name:
        raise TypeError("it is no dataclass with a name")
    return kind


def find(name: str) -> type[Method]:
    """A method class by its registry name or an unambiguous beginning of it (`glimpse`).

    Raises:
        ConfigurationError: unknown name; the message lists them all.
    """
    wanted = name.lower().replace("-", "_")
    found = [key for key in registry() if key == wanted] or [key for key in registry() if key.startswith(wanted)]
    if len(found) != 1:
        near = found or difflib.get_close_matches(wanted, registry(), 1)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ConfigurationError(f"There is no method {name!r}.{hint} There are {', '.join(registry())}.")
    return registry()[found[0]]


def make(name: str, **parameters: Any) -> Method:
    """A configured method by its registry name, e.g. `make("vitcop", keep=1/9)`.

    Raises:
        ConfigurationError: unknown name or parameter (both lists are in the message), or one that is missing.
    """
    kind = find(name)
    known = parameters_of(kind)
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ConfigurationError(f"{kind.name} has no parameter {', '.join(unknown)}; it has {', '.join(known)}.")
    needed = [key for key, value in known.items() if value is inspect.Parameter.empty and key not in parameters]
    if needed:
        raise ConfigurationError(f"{kind.name} needs {', '.join(needed)}, for example {kind.name}:{needed[0]}=...")
    return kind(**parameters)


def parameters_of(kind: type[Method]) -> dict[str, Any]:
    """What a method can be given by name, with defaults (`inspect.Parameter.empty` for what must be given)."""
    found = inspect.signature(kind).parameters.values()
    return {p.name: p.default for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def takes_keep(kind: type[Method]) -> bool:
    """Whether a method is configured by `keep` (GlimpsePrune is not: how much it keeps depends on the input)."""
    return "keep" in parameters_of(kind)


def __getattr__(name: str) -> Any:
    """`from foveate.methods import ViTCoP` without listing the classes here."""
    if not name.startswith("_"):
        for methods in (_built_in, registry):  # a plugin that imports one of ours must not load the plugins again
            for kind in methods().values():
                if kind.__name__ == name:
                    return kind
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return ["find", "make", "registry", *(kind.__name__ for kind in registry().values())]
