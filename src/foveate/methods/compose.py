"""Compose: several methods in a row, with one budget for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import Any

from foveate.core.budget import Keep, Per
from foveate.core.method import BEFORE_LLM, Method, Positions, Stage
from foveate.core.probe import Probe
from foveate.core.selection import Choice, Selection
from foveate.core.tower import TowerStage, TowerView
from foveate.core.tower_method import TowerMethod
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

    Methods that prune the vision tower come first and keep their own budgets. They do not change what later budgets
    refer to: those count the image's tokens, of which no more is left than the tower leaves.

    Args:
        methods: at least two, in the order in which they select: all stages of one come before those of the next.
        keep: average visual tokens per decoder layer, as a ratio or a count. None: every member keeps its own budget.
        positions, proportional: as `Method`; proportional for all stages if it is for one member.

    Raises:
        ConfigurationError: methods that cannot be combined (same stage layer, interleaved stages, renumbered positions,
            different `per`, two probes), or, with an overall budget, a member without a known share per layer.
    """

    keep: Keep | float | int | None = None
    methods: tuple[Method, ...] = ()

    def __init__(
        self,
        *methods: Method,
        keep: Keep | float | int | None = None,
        positions: Positions = "original",
        proportional: bool | None = None,
    ) -> None:
        object.__setattr__(self, "methods", methods)
        budget = None if keep is None else Keep.of(keep)
        if budget is not None and isinstance(budget.plain, str):
            raise ConfigurationError(
                f"Compose takes a ratio or a count, not {budget!r}; give such budgets to its members."
            )
        object.__setattr__(self, "keep", keep)
        object.__setattr__(self, "positions", positions)
        object.__setattr__(self, "proportional", proportional)
        self.__post_init__()
        if len(methods) < 2 or not all(isinstance(method, Method) for method in methods):
            raise ConfigurationError(
                "Compose takes two or more methods, for example Compose(FasterVLM(), FastV(), keep=1/9)."
            )
        tower = [isinstance(method, TowerMethod) for method in methods]
        if tower != sorted(tower, reverse=True) or (all(tower) and keep is not None):
            raise ConfigurationError(
                "Compose: methods that prune the vision tower come first, and with an overall keep others must follow."
            )
        if any(isinstance(method, Compose) for method in methods):
            raise ConfigurationError("Compose holds another Compose; list all methods in one.")
        if len({method.per for method in _llm(methods)}) > 1:
            kinds = ", ".join(f"{method.name}: per {method.per}" for method in _llm(methods))
            raise ConfigurationError(f"Compose: all budgets must be per image, per frame or per prompt ({kinds}).")

    @classmethod
    def example(cls, keep: float, model: Any) -> Compose:
        """A composition for any model; for tests and tables."""
        from foveate.methods.fastervlm import FasterVLM
        from foveate.methods.fastv import FastV

        return cls(FasterVLM(), FastV(), keep=keep)

    @property
    def per(self) -> Per:
        return (_llm(self.methods) or self.methods)[0].per  # a tower has no prompts

    @property
    def prunes(self) -> bool:
        return any(method.prunes for method in self.methods) if self.keep is None else super().prunes

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | {"methods": [str(method) for method in self.methods]}

    def stages(self, info: ModelInfo) -> Sequence[Stage]:
        _check(self._in_llm, info)
        stages = [stage for method in self._in_llm for stage in method.stages(info)]
        if self.tower_stages(info) and (not stages or stages[0].layer != BEFORE_LLM):
            stages.insert(0, Stage(BEFORE_LLM))  # where what the tower left is taken over
        return stages

    def tower_stages(self, info: ModelInfo) -> Sequence[TowerStage]:
        return [stage for method in self._pruning for stage in method.tower_stages(info)]

    def select_in_tower(self, view: TowerView) -> Choice:
        for number, method in enumerate(self.methods):
            if method.prunes and view.block in [stage.block for stage in method.tower_stages(view.info)]:
                memo = view.memo.setdefault(f"{method.name} {number}", {})
                return method.select_in_tower(replace(view, memo=memo))
        raise AssertionError(f"no member selects before tower block {view.block}")

    def weighs(self, info: ModelInfo) -> bool:
        """As asked, or for all stages if any member would."""
        return any(m.weighs(info) for m in self._in_llm) if self.proportional is None else self.proportional

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
        found = members(self, info, keep)
        _, shares = joined(_llm(found), info, ceiling(found))
        own = shares[1:]
        return own if len(own) == len(self.stages(info)) else [min(1.0, ceiling(found)), *own]

    def select(self, view: View) -> Choice:
        """As many as the member says whose stage it is, of the tokens that reach that member."""
        ratio = None if self.keep is None else self.budget.ratio_of(view.entered)
        for number, method in enumerate(members(self, view.info, ratio)):
            in_llm = self.methods[number].prunes and not isinstance(method, TowerMethod)
            if in_llm and view.layer in [stage.layer for stage in method.stages(view.info)]:
                memo = view.memo.setdefault(f"{method.name} {number}", {})
                first = view.memo.setdefault("first", number) == number  # its budget counts what the tower dropped
                entered = view.memo.setdefault(f"{method.name} {number} entered", view.entered if first else len(view))
                return method.select(replace(view, memo=memo, entered=entered))
        return Selection.everything(len(view), view.device)  # only the tower has selected

    @property
    def _pruning(self) -> list[Method]:
        return [method for method in self.methods if method.prunes]

    @property
    def _in_llm(self) -> list[Method]:
        return _llm(self._pruning)


@lru_cache(maxsize=64)
def members(compose: Compose, info: ModelInfo, keep: float | None) -> tuple[Method, ...]:
    """The methods with the budgets they have on such a model for an overall share of the tokens."""
    if keep is None:
        return compose.methods
    towers = tuple(method for method in compose.methods if isinstance(method, TowerMethod))
    return (*towers, *budgeted(_llm(compose.methods), keep, info, ceiling(compose.methods)))


def ceiling(methods: Sequence[Method]) -> float:
    """Share of an image's tokens that members in the vision tower leave at most."""
    towers = [method for method in methods if isinstance(method, TowerMethod) and method.keep is not None]
    return min((t.budget.ratio for t in towers if t.budget.ratio is not None), default=1.0)


def _llm(methods: Sequence[Method]) -> list[Method]:
    return [method for method in methods if not isinstance(method, TowerMethod)]


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
