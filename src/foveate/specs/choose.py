"""A method from what a user wrote: a name with its budget, or the file that `foveate tune` left."""

from __future__ import annotations

from typing import Any

from foveate.core.method import Method
from foveate.errors import ConfigurationError
from foveate.methods import find, make, parameters_of
from foveate.specs.beside import module_beside
from foveate.specs.settings import parse_keeps
from foveate.specs.tuned import read

UNPRUNED = ("none", "unpruned")
"""Names that stand for no method."""


def choose_method(name: str, *, keep: float | int | None = None, model: str = "", **parameters: Any) -> Method | None:
    """The configured method that a name and its parameters ask for.

    Args:
        name: of `foveate methods`, `none` or `unpruned`, or the path of a `foveate.json`.
        keep: the budget; for a method that finds its own number of tokens, the most it may keep.
        model: folder or name of the model; a trained module is looked for in its folder `glimpse`.
        parameters: of the method.

    Returns:
        The method, or None for no pruning.

    Raises:
        ConfigurationError: unknown name or parameter, a method that needs a module where there is none, or
            parameters without effect.
        TunedFileError: an unusable foveate.json.
    """
    given = {name: value for name, value in {"keep": keep, **parameters}.items() if value is not None}
    if name.lower() in UNPRUNED:
        _refuse(given, f"'{name}' prunes nothing")
        return None
    if name.endswith(".json"):
        _refuse(given, f"{name} says what to keep, and how")
        return read(name)
    kind = find(name)
    fields = parameters_of(kind)
    if "module" in fields and "module" not in given:
        given |= {"module": module_beside(kind.name, model)}
    elif "module" in given and "module" not in fields:
        raise ConfigurationError(f"{kind.name} has no module; leave it out, or ask for the method glimpse_prune.")
    if "keep" in given and "keep" not in fields and "max_keep" in fields:
        given["max_keep"] = given.pop("keep")
    return make(kind.name, **given)


def one_budget(text: str) -> float | int:
    """The budget that `--keep` names, of which a question can have only one.

    Raises:
        ConfigurationError: no ratio, fraction or count, or several.
    """
    budgets = parse_keeps([text])
    if len(budgets) > 1:
        raise ConfigurationError(f"--keep {text}: one budget a question; `foveate eval` compares several.")
    return budgets[0]


def _refuse(given: dict[str, Any], why: str) -> None:
    if given:
        raise ConfigurationError(f"{why}: leave {', '.join(given)} out.")
