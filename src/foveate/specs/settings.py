"""A method with its parameters as plain values: what a line of text, a file and a budget come to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from foveate.core.method import Method
from foveate.errors import ConfigurationError
from foveate.methods import find, make, parameters_of, takes_keep
from foveate.specs.beside import module_beside
from foveate.specs.grammar import COMPOSE, parse, parse_keeps, write
from foveate.specs.tuned import TunedFileError, load

UNPRUNED = "unpruned"
NOTHING = ("none", UNPRUNED)
"""Names that stand for no method."""
BUDGETS = ("keep", "max_keep")
"""Parameters that say how much stays; a method that finds its own number of tokens has the second."""


@dataclass(frozen=True)
class Setting:
    """One configuration.

    Attributes:
        name: short name, unique within a run.
        kind: registry name of the method, or `"unpruned"`.
        parameters: what the user gave; JSON values only.
        evidence: what a foveate.json says it was measured on.
    """

    name: str
    kind: str = UNPRUNED
    parameters: dict[str, Any] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict, compare=False)

    def make(self) -> Method | None:
        """The configured method; None for the unpruned model.

        Raises:
            ConfigurationError, BudgetError: an unknown parameter, or a value that makes no sense.
        """
        return None if self.kind == UNPRUNED else configured(self.kind, self.parameters)

    def describe(self) -> str:
        """The setting in full, defaults included. What the user gave stands as given: a path says more than the
        module that was loaded from it."""
        method = self.make()
        if method is None:
            return self.name
        every = method.parameters() | self.parameters
        return f"{self.kind}({', '.join(f'{name}={value!r}' for name, value in every.items())})"

    def with_keep(self, keep: float | int) -> Setting:
        """The same with another budget; for a method that finds its own number of tokens, the most it may keep.

        Raises:
            ConfigurationError: there is nothing that a budget could limit.
        """
        known = () if self.kind == UNPRUNED else parameters_of(find(self.kind))
        own = next((name for name in BUDGETS if name in known), None)
        if own is None:
            why = "prunes nothing" if self.kind == UNPRUNED else "decides by the picture alone how many tokens it keeps"
            raise ConfigurationError(f"--keep {keep:.4g}: {self.kind} {why}; leave keep out.")
        return _named(replace(self, parameters={own: keep} | self.parameters | {own: keep}))

    @property
    def has_budget(self) -> bool:
        """Whether what was given says how much stays."""
        return any(name in self.parameters for name in BUDGETS)

    def without_keep(self) -> Setting:
        """The same with no budget of its own."""
        return _named(replace(self, parameters={k: v for k, v in self.parameters.items() if k not in BUDGETS}))


def setting(text: str, keep: float | int | None = None, model: str = "", **parameters: Any) -> Setting:
    """The one setting that a method's text (see `grammar`) or a `foveate.json` names.

    Args:
        keep: its budget, where the text names none.
        model: folder or name of the model; a method without its trained module finds it in the folder `glimpse` there.
        parameters: further ones of the method.

    Raises:
        ConfigurationError: unknown method or parameter, a method without its module, or something given twice.
        TunedFileError: an unusable foveate.json.
    """
    given = {name: value for name, value in parameters.items() if value is not None}
    if text.strip().lower() in NOTHING or text.endswith(".json"):
        _refuse(given | ({} if keep is None else {"keep": keep}), text)
        return _of_file(text) if text.endswith(".json") else Setting(UNPRUNED)
    written = parse(text)
    if twice := sorted(given.keys() & written.parameters.keys()):
        raise ConfigurationError(f"{text}: {', '.join(twice)} is given twice; leave it out in one place.")
    kind = find(written.name).name
    own = _known(kind, written.parameters | given)
    if "module" in given and "module" not in parameters_of(find(kind)):
        raise ConfigurationError(f"{kind} has no module; leave it out, or ask for the method glimpse_prune.")
    found = _named(Setting(text, kind, own))
    if keep is not None and found.has_budget:
        raise ConfigurationError(f"--keep {keep:.4g}: {text} already says what to keep; leave one of them out.")
    return _with_modules(found if keep is None else found.with_keep(keep), model)


def grid(methods: Sequence[str], keeps: Sequence[float | int], model: str = "") -> list[Setting]:
    """Unpruned, then every method at every keep.

    Args:
        methods: texts as in `setting`. A method that names its budget, or that has none, appears once.
        keeps: ratios in (0, 1] or whole numbers of tokens.
        model: see `setting`.

    Raises:
        ConfigurationError: see `setting`, or the same setting twice.
    """
    found = [Setting(UNPRUNED)]
    for text in methods:
        one = setting(text, model=model)
        if one.kind == UNPRUNED:
            continue
        fixed = one.has_budget or text.endswith(".json") or not takes_keep(find(one.kind))
        settings = [one] if fixed or not keeps else [setting(text, keep, model) for keep in keeps]
        for each in settings:
            each.make()  # a wrong value shows now, not after an hour
        found += settings
    names = [one.name for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigurationError(f"Asked for twice: {', '.join(twice)}. Give each method and keep once.")
    return found


def one_setting(method: str, keep: str | None, model: str = "") -> Setting:
    """The one setting that `--method` and `--keep` name, checked.

    Raises:
        ConfigurationError: see `setting`; several keeps, or one that the method has no use for.
    """
    keeps = parse_keeps([keep]) if keep is not None else []
    if len(keeps) > 1:
        raise ConfigurationError(f"--keep {keep}: give one budget; `foveate eval` compares several.")
    found = setting(method, keeps[0] if keeps else None, model)
    found.make()
    return found


def configured(kind: str, parameters: dict[str, Any]) -> Method:
    """The method of a registry name with parameters as plain values; of `compose`, `methods` are texts.

    Raises:
        ConfigurationError: an unknown method or parameter, or one that is missing.
    """
    if kind != COMPOSE:
        return make(kind, **parameters)
    from foveate.methods import Compose

    rest = {name: value for name, value in _known(kind, parameters).items() if name != "methods"}
    members = (parse(text) for text in parameters["methods"])
    return Compose(*(make(one.name, **one.parameters) for one in members), **rest)


def _of_file(path: str) -> Setting:
    tuned = load(Path(path))
    try:
        kind = find(tuned.method).name
        return _named(Setting(path, kind, _known(kind, tuned.parameters), tuned.evidence))
    except ConfigurationError as error:
        raise TunedFileError(f"{path}: {error}") from error


def _known(kind: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters, if the method has them all; those of a composition, whose members are made here."""
    if kind != COMPOSE:
        return parameters
    members = parameters.get("methods")
    if not isinstance(members, list) or not all(isinstance(one, str) for one in members):
        raise ConfigurationError("compose is written as its methods in a row: fastervlm:keep=1/3 + fastv.")
    unknown = sorted(parameters.keys() - {"methods", *parameters_of(find(COMPOSE))})
    if unknown:
        known = ", ".join(sorted(parameters_of(find(COMPOSE))))
        raise ConfigurationError(f"compose has no parameter {', '.join(unknown)}; it has {known}.")
    return parameters


def _with_modules(found: Setting, model: str) -> Setting:
    """With the trained module beside the model, for methods that need one and were given none."""
    own = _with_module(found.kind, found.parameters, model)
    if found.kind == COMPOSE:
        members = [parse(text) for text in own["methods"]]
        kinds = [find(one.name).name for one in members]
        texts = [write(k, _with_module(k, one.parameters, model)) for k, one in zip(kinds, members, strict=True)]
        own = own | {"methods": texts}
    return replace(found, parameters=own)


def _with_module(kind: str, parameters: dict[str, Any], model: str) -> dict[str, Any]:
    if "module" in parameters or "module" not in parameters_of(find(kind)):
        return parameters
    return {**parameters, "module": str(module_beside(kind, model))}


def _named(found: Setting) -> Setting:
    """With the name that says method, budget and what else was given."""
    parameters = dict(found.parameters)
    parts = [" + ".join(parameters.pop("methods")) if found.kind == COMPOSE else found.kind]
    for name, value in parameters.items():
        parts.append(_number(value) if name == "keep" else f"{name}={_number(value)}")
    return replace(found, name=" ".join(parts))


def _number(value: Any) -> str:
    if isinstance(value, float) and 0 < value < 1:
        fraction = Fraction(value).limit_denominator(64)
        near = math.isclose(float(fraction), value, rel_tol=1e-9)
        return str(fraction) if near and fraction.numerator in (1, 2, 3) else f"{value:.4g}"
    return str(value)


def _refuse(given: dict[str, Any], text: str) -> None:
    if given:
        why = f"{text} says what to keep, and how" if text.endswith(".json") else f"'{text}' prunes nothing"
        raise ConfigurationError(f"{why}: leave {', '.join(given)} out.")
