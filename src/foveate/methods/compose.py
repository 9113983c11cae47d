"""Compose: several methods in a row, with one budget for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import Any

from foveate.core.budget import Keep
from foveate.core.method import Choice, Method, ModelInfo, Stage, Tap
from foveate.core.probe import Probe
from foveate.core.view import View
from foveate.errors import ConfigurationError
from foveate.maths.schedule import Schedule, average


@dataclass(frozen=True, init=False)
class Compose(Method):
    """Methods chained at their seams: each sees what the one before left. `Compose(FasterVLM(), FastV(), keep=1/9)`.

    A method's budget refers to the tokens that reach it. With an overall budget, every member's `keep` is raised to one
    common power, so that the average over all layers is met and the members' own values say how they share the
    reduction. A member whose number depends on the input counts with its cap (`max_keep`, 1.0 if None): the average is
    then an upper limit. ViTCoP's encoder stage alone is FasterVLM.

    Args:
        methods: at least two, in the order in which they select: all stages of one come before those of the next.
        keep: average visual tokens per decoder layer over the unpruned number, in (0, 1]. None: every member keeps
            its own budget.

    Raises:
        ConfigurationError: methods that cannot be combined (same stage layer, interleaved stages, renumbered positions,
            different `per`, two probes), or, with an overall budget, a member without a known share per layer.
    """

    methods: tuple[Method, ...]
    keep: float | None

    def __init__(self, *methods: Method, keep: float | None = None) -> None:
        object.__setattr__(self, "methods", methods)
        object.__setattr__(self, "keep", keep)
        if keep is not None:
            Keep(ratio=keep)
        if len(methods) < 2 or not all(isinstance(method, Method) for method in methods):
            raise ConfigurationError(
                "Compose takes two or more methods, for example Compose(FasterVLM(), FastV(), keep=1/9)."
            )
        if len({method.per for method in methods}) > 1:
            kinds = ", ".join(f"{method.name}: per {method.per}" for method in methods)
            raise ConfigurationError(f"Compose: all budgets must be per image or all per prompt ({kinds}).")
        object.__setattr__(self, "per", methods[0].per)

    @classmethod
    def example(cls, keep: float, model: Any) -> Compose:
        """A composition for any model; for tests and tables."""
        from foveate.methods.fastervlm import FasterVLM
        from foveate.methods.fastv import FastV

        return cls(FasterVLM(), FastV(), keep=keep)

    def stages(self, info: ModelInfo) -> Sequence[Stage]:
        return [stage for stages in _stages(members(self, info), info) for stage in stages]

    def taps(self, info: ModelInfo) -> Sequence[Tap]:
        return list(dict.fromkeys(tap for method in members(self, info) for tap in method.taps(info)))

    def probe(self, info: ModelInfo) -> Probe | None:
        return next((probe for method in members(self, info) if (probe := method.probe(info)) is not None), None)

    def schedule(self, info: ModelInfo) -> Schedule:
        """(layer, share alive) of all stages."""
        return _joined(members(self, info), info)

    def select(self, stage: Stage, view: View) -> Choice:
        for number, method in enumerate(members(self, view.info)):
            own = {s.layer: s for s in method.stages(view.info)}
            if stage.layer in own:
                memo = view.memo.setdefault(f"{method.name} {number}", {})
                return method.select(own[stage.layer], replace(view, memo=memo))
        raise AssertionError(f"no member selects before layer {stage.layer}")


@lru_cache(maxsize=8)
def members(compose: Compose, info: ModelInfo) -> tuple[Method, ...]:
    """The methods with the budgets they have on such a model, checked against each other."""
    methods = compose.methods
    if compose.keep is not None:
        methods = _budgeted(methods, compose.keep, info)
    _check(methods, info)
    return methods


def _check(methods: Sequence[Method], info: ModelInfo) -> None:
    stages = _stages(methods, info)
    for (a, own), (b, other) in combinations(zip(methods, stages, strict=True), 2):
        both = sorted({stage.layer for stage in own} & {stage.layer for stage in other})
        if both:
            raise ConfigurationError(
                f"Compose: {a.name} and {b.name} both select before layer {both[0]}; move one of them or leave it out."
            )
        if own and other and own[-1].layer > other[0].layer:
            raise ConfigurationError(
                f"Compose: {a.name} still selects before layer {own[-1].layer}, but {b.name} starts before layer "
                f"{other[0].layer}; list the methods in the order in which they select, without overlap."
            )
    if len(probing := [method.name for method in methods if method.probe(info) is not None]) > 1:
        raise ConfigurationError(f"Compose: {' and '.join(probing)} both append probe tokens; use one of them.")
    for method, own in zip(methods, stages, strict=True):
        if method.decode_from_cache or any(stage.positions != "original" for stage in own):
            raise ConfigurationError(
                f"Compose: {method.name} renumbers positions (it reproduces published code); other methods then see "
                "wrong positions. Configure it to keep the original ones."
            )


def _stages(methods: Sequence[Method], info: ModelInfo) -> list[Sequence[Stage]]:
    return [method.stages(info) for method in methods]


def _budgeted(methods: Sequence[Method], keep: float, info: ModelInfo) -> tuple[Method, ...]:
    """All members with their `keep` raised to the power that makes the overall average `keep`."""
    own = [_share(method) for method in methods]

    def raised(power: float) -> tuple[Method, ...]:
        return tuple(_with_share(method, share**power) for method, share in zip(methods, own, strict=True))

    def keeps(power: float) -> float:
        try:
            return average(_joined(raised(power), info), info.layers)
        except ConfigurationError:  # a member cannot go so low
            return 0.0

    low, high = 0.0, 32.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if keeps(middle) >= keep else (low, middle)
    if keeps(low) > keep * (1 + 1e-6):  # just beyond, a member refuses: it says why
        names = ", ".join(method.name for method in methods)
        try:
            _joined(raised(high), info)
        except ConfigurationError as why:
            raise ConfigurationError(
                f"Compose({names}) cannot keep {keep:.3g} on average with these proportions; it stays "
                f"above {keeps(low):.3g}. Give an earlier method a smaller keep, or raise the overall one. ({why})"
            ) from why
    return raised(low) if keep < 1.0 else raised(0.0)


def _share(method: Method) -> float:
    """The member's own budget as a share; of an adaptive one, its cap."""
    if _is_capped(method):
        keep = method.max_keep if method.max_keep is not None else 1.0  # type: ignore[attr-defined]
    else:
        keep = getattr(method, "keep", None)
    budget = None if keep is None else Keep.of(keep)
    if budget is None or budget.ratio is None or budget.cap is not None:
        raise ConfigurationError(
            f"Compose: {method.name} has no budget that is a share of the tokens, so no overall budget can be divided; "
            "give it one, for example keep=1/3, or leave out the overall keep."
        )
    return budget.ratio


def _with_share(method: Any, share: float) -> Method:
    if not _is_capped(method):
        found: Method = replace(method, keep=replace(k, ratio=share) if isinstance(k := method.keep, Keep) else share)
        return found
    return method if share == 1.0 else replace(method, max_keep=share)


def _is_capped(method: Method) -> bool:
    return not hasattr(method, "keep") and hasattr(method, "max_keep")


def _joined(methods: Sequence[Method], info: ModelInfo) -> Schedule:
    """Schedules of consecutive methods as one, relative to the tokens that enter the first."""
    joined: list[tuple[int, float]] = []
    left = 1.0
    for method in methods:
        joined += [(layer, left * share) for layer, share in _schedule(method, info)]
        left = joined[-1][1] if joined else 1.0
    return tuple(joined) or ((0, 1.0),)


def _schedule(method: Method, info: ModelInfo) -> Schedule:
    layers = [stage.layer for stage in method.stages(info)]
    if not layers or _share(method) == 1.0:
        return ()
    if hasattr(method, "schedule"):
        return method.schedule(info)
    if len(layers) > 1:
        raise ConfigurationError(
            f"Compose: {method.name} does not say how many tokens it keeps from layer to layer (no `schedule`), so no "
            "overall budget can be divided; leave out the overall keep."
        )
    return ((layers[0], _share(method)),)
