"""What to compare: methods x keeps, as users write them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from foveate.core.method import Method
from foveate.errors import ConfigurationError
from foveate.specs.beside import module_beside

UNPRUNED = "unpruned"


@dataclass(frozen=True)
class Setting:
    """One configuration to measure.

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
        """The configured method; None for the unpruned model."""
        from foveate.methods import make

        return None if self.kind == UNPRUNED else make(self.kind, **self.parameters)

    def describe(self) -> str:
        """The setting in full, defaults included. What the user gave stands as given: a path says more than the
        module that was loaded from it."""
        method = self.make()
        if method is None:
            return self.name
        every = method.parameters() | self.parameters
        return f"{self.kind}({', '.join(f'{name}={value!r}' for name, value in every.items())})"


def grid(methods: Sequence[str], keeps: Sequence[float | int], model: str = "") -> list[Setting]:
    """Unpruned, then every method at every keep.

    Args:
        methods: `name`, `name:parameter=value,...` or a `foveate.json`. A method whose keep is given in its own
            parameters, or that has none, appears once.
        keeps: ratios in (0, 1] or whole numbers of tokens.
        model: folder or name of the model; a method without its trained module finds it in the folder `glimpse` there.

    Raises:
        ConfigurationError: unknown method or parameter, a method without its module, or the same setting twice.
    """
    found = [Setting(UNPRUNED)]
    for text in methods:
        kind, parameters, evidence = _parse(text)
        if kind == UNPRUNED:
            continue
        swept = "keep" not in parameters and _has_keep(kind)
        for keep in keeps if swept and keeps else [None]:
            own = parameters if keep is None else {"keep": keep, **parameters}
            setting = Setting(_name(kind, own), kind, _with_module(kind, own, model), evidence)
            setting.make()  # a wrong value shows now, not after an hour
            found.append(setting)
    names = [setting.name for setting in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigurationError(f"Asked for twice: {', '.join(twice)}. Give each method and keep once.")
    return found


def one_setting(method: str, keep: str | None) -> Setting:
    """The one setting that `--method` (as in `grid`) and `--keep` name.

    Raises:
        ConfigurationError: see `grid`; several keeps, or one that the method has no use for.
    """
    keeps = parse_keeps([keep]) if keep is not None else []
    if len(keeps) > 1:
        raise ConfigurationError(f"--keep {keep}: give one budget; `foveate eval` compares several.")
    found = grid([UNPRUNED if method.lower() == "none" else method], keeps)[-1]
    if keeps and found.parameters.get("keep") != keeps[0]:
        raise ConfigurationError(f"--keep {keep}: {method} already says what to keep, or has no keep; leave it out.")
    return found


def parse_keeps(texts: Sequence[str]) -> list[float | int]:
    """`["1/9,0.5", "64"]` -> `[0.111..., 0.5, 64]`: ratios, fractions and whole numbers of tokens. `1` is one token,
    `1.0` everything."""
    keeps: list[float | int] = []
    for part in (part.strip() for text in texts for part in text.split(",")):
        try:
            value = float(Fraction(part))
        except (ValueError, ZeroDivisionError) as error:
            raise ConfigurationError(
                f"--keep {part}: write a ratio (0.11), a fraction (1/9) or a count (64)."
            ) from error
        keeps.append(int(part) if re.fullmatch(r"\d+", part) else value)
    return keeps


def _parse(text: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    if text.endswith(".json"):
        from foveate.specs.tuned import load

        tuned = load(Path(text))
        return tuned.method, tuned.parameters, tuned.evidence
    from foveate.methods import find

    kind, _, rest = text.partition(":")
    parameters: dict[str, Any] = {}
    for pair in filter(None, rest.split(",")):
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigurationError(f"--method {text}: expected name:parameter=value,parameter=value, got {pair!r}.")
        parameters[name.strip()] = parse_value(value.strip())
    return kind if kind == UNPRUNED else find(kind).name, parameters, {}


def parse_value(text: str) -> Any:
    """A parameter's value: JSON, a Python word (`True`, `None`), a fraction, else the text itself."""
    words = {"True": True, "False": False, "None": None}
    if text in words:
        return words[text]
    try:
        return json.loads(text)
    except ValueError:
        return float(Fraction(text)) if re.fullmatch(r"\d+/[1-9]\d*", text) else text


def _with_module(kind: str, parameters: dict[str, Any], model: str) -> dict[str, Any]:
    from foveate.methods import find, parameters_of

    if "module" in parameters or "module" not in parameters_of(find(kind)):
        return parameters
    return {**parameters, "module": str(module_beside(kind, model))}


def _has_keep(kind: str) -> bool:
    from foveate.methods import find, takes_keep

    return takes_keep(find(kind))


def _name(kind: str, parameters: dict[str, Any]) -> str:
    parts = [kind]
    for name, value in parameters.items():
        parts.append(_number(value) if name == "keep" else f"{name}={_number(value)}")
    return " ".join(parts)


def _number(value: Any) -> str:
    if isinstance(value, float) and 0 < value < 1:
        fraction = Fraction(value).limit_denominator(64)
        near = math.isclose(float(fraction), value, rel_tol=1e-9)
        return str(fraction) if near and fraction.numerator in (1, 2, 3) else f"{value:.4g}"
    return str(value)
