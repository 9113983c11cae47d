"""Classes that a package of ours holds, one a file, and those that installed packages name as entry points."""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from foveate.errors import ConfigurationError

Kind = TypeVar("Kind")


def classes_of(package: str, path: Iterable[str], base: type[Kind]) -> Iterator[type[Kind]]:
    """Subclasses of `base` that the modules of a package define."""
    for module in pkgutil.iter_modules(path):
        imported = importlib.import_module(f"{package}.{module.name}")
        for thing in vars(imported).values():
            if isinstance(thing, type) and issubclass(thing, base) and thing.__module__ == imported.__name__:
                yield thing


def with_installed(
    built_in: Mapping[str, type[Kind]],
    group: str,
    check: Callable[[Any], type[Kind]],
    names: Callable[[type[Kind]], Iterable[str]],
    what: str,
    remedy: str = "uninstall one of them",
) -> dict[str, type[Kind]]:
    """Our classes and those of installed packages, by name. An entry point that cannot be loaded is left out with a
    warning.

    Args:
        group: of the entry points.
        check: gives the class back, or raises what is wrong with what an entry point named.
        names: the names of a class.
        what: what such a class is, and for which name, in words: `method`, `adapter for model type`.

    Raises:
        ConfigurationError: two packages have a class of one name.
    """
    found, owners = dict(built_in), dict.fromkeys(built_in, "foveate")
    for entry in entry_points(group=group):
        owner = _owner(entry)
        try:
            kind = check(entry.load())
        except Exception as error:  # whatever it is, it must not take the others with it
            warnings.warn(
                f"{entry.name!r} of {owner} ({group}: {entry.value}) cannot be loaded and is left out: {error!r}.",
                stacklevel=3,
            )
            continue
        for name in names(kind):
            if found.get(name, kind) is not kind:
                raise ConfigurationError(f"{owners[name]} and {owner} both have a {what} {name!r}; {remedy}.")
            found[name], owners[name] = kind, owners.get(name, owner)
    return found


def _owner(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value.partition(":")[0]
