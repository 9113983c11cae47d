"""Compose: several methods in a row, with one budget for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import Any

from foveate.core.budget import Keep, Per
from foveate.core.method import Method, Positions, Stage
from foveate.core.probe import Probe
from foveate.core.selection import Choice
from foveate.core.view import ModelInfo, Tap, View
from foveate.errors import ConfigurationError
from foveate.methods.shared_budget import budgeted, joined


@dataclass(frozen=True, init=False)
class Compose(Method):
    """Methods chained at their seams: each sees what the one before left. `Compose(FasterVLM(), FastV(), keep=1/9)`.

    A method's budget refers to the tokens that reach it. With an overall budget, every member's `keep` is raised to one
    common power, so that the average over all layers is met and the members' own values say how they share the
    reduction. A member whose number depends on the input counts with its cap (`max_keep`, 1.0 if None): the average is
    then an upper limit. ViTCoP's encoder stage alone is FasterVLM.

    Args:
        methods: at least two, in the order in which they select: all stages of one come before those of the next.
        keep: average visual tokens per decoder layer, as a ratio or a count. None: every member keeps its own budget.

    Raises:
        ConfigurationError: methods that cannot be combined (same stage layer, interleaved stages, renumbered positions,
            different `per`, two probes), or, with an overall budget, a member without a known share per layer.
    """

    keep: Keep | float | int | None = None
    methods: tuple[Method, ...] = ()

    def __init__(
        self, *methods: Method, keep: Keep | float | int | None = None, positions: Positions = "original"
    ) -> None:
        object.__setattr__(self, "methods", methods)
        budget = None if keep is None else Keep.of(keep)
        if budget is not None and isinstance(budget.plain, str):
            raise ConfigurationError(
                f"Compose takes a ratio or a count, not {budget!r}; give such budgets to its members."
            )
        object.__setattr__(self, "keep", keep)
        object.__setattr__(self, "positions", positions)
        self.__post_init__()
        if len(methods) < 2 or not all(isinstance(method, Method) for method in methods):
            raise ConfigurationError(
                "Compose takes two or more methods, for example Compose(FasterVLM(), FastV(), keep=1/9)."
            )
        if any(isinstance(method, Compose) for method in methods):
            raise ConfigurationError("Compose holds another Compose; list all methods in one.")
        if len({method.per for method in methods}) > 1:
            kinds = ", ".join(f"{method.name}: per {method.per}" for method in methods)
            raise ConfigurationError(f"Compose: all budgets must be per image, per frame or per prompt ({kinds}).")

    @classmethod
    def example(cls, keep: float, model: Any) -> Compose:
        """A composition for any model; for tests and tables."""
        from foveate.methods.fastervlm import FasterVLM
        from foveate.methods.fastv import FastV

        return cls(FasterVLM(), FastV(), keep=keep)

    @property
    def per(self) -> Per:
        return self.methods[0].per

    @property
    def prunes(self) -> bool:
        return any(method.prunes for method in self.methods) if self.keep is None else super().prunes

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | {"methods": [str(method) for method in self.methods]}

    def stages(self, info: ModelInfo) -> Sequence[Stage]:
        _check(self._pruning, info)
        return [stage for method in self._pruning for stage in method.stages(info)]

    def check(self, info: ModelInfo) -> None:
        super().check(info)
        if self.keep is None:
            for method in self._pruning:
                method.check(info)

    @property
    def takes_features(self) -> bool:
        return all(method.takes_features for method in self._pruning if method.taps(ModelInfo()))

    def taps(self, info: ModelInfo) -> Sequence[Tap]:
        return list(dict.fromkeys(tap for method in self._pruning for tap in method.taps(info)))

    def probe(self, info: ModelInfo) -> Probe | None:
        return next((probe for method in self._pruning if (probe := method.probe(info)) is not None), None)

    def shares(self, info: ModelInfo, keep: float) -> Sequence[float]:
        _, shares = joined(members(self, info, keep), info)
        return shares[1:]

    def select(self, view: View) -> Choice:
        """As many as the member says whose stage it is, of the tokens that reach that member."""
        ratio = None if self.keep is None else self.budget.ratio_of(view.entered)
        for number, method in enumerate(members(self, view.info, ratio)):
            if self.methods[number].prunes and view.layer in [stage.layer for stage in method.stages(view.info)]:
                memo = view.memo.setdefault(f"{method.name} {number}", {})
                entered = view.memo.setdefault(f"{method.name} {number} entered", len(view))
                return method.select(replace(view, memo=memo, entered=entered))
        raise AssertionError(f"no member selects before layer {view.layer}")

    @property
    def _pruning(self) -> list[Method]:
        return [method for method in self.methods if method.prunes]


@lru_cache(maxsize=64)
def members(compose: Compose, info: ModelInfo, keep: float | None) -> tuple[Method, ...]:
    """The methods with the budgets they have on such a model for an overall share of the tokens."""
    return compose.methods if keep is None else budgeted(compose.methods, keep, info)


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
        if method.decode_from_cache or any(stage.positions not in (None, "original") for stage in own):
            raise ConfigurationError(
                f"Compose: {method.name} renumbers positions (it reproduces published code); other methods then see "
                "wrong positions. Configure it to keep the original ones."
            )


def _stages(methods: Sequence[Method], info: ModelInfo) -> list[Sequence[Stage]]:
    return [method.stages(info) for method in methods]
