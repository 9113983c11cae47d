"""One budget for several methods in a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from foveate.core.budget import Keep
from foveate.core.method import Method, ModelInfo
from foveate.errors import ConfigurationError
from foveate.maths.schedule import Schedule, average


def budgeted(methods: Sequence[Method], keep: float, info: ModelInfo) -> tuple[Method, ...]:
    """All methods with their `keep` raised to the power that makes the overall average `keep`.

    Raises:
        ConfigurationError: a method without a share to change, or an average that they cannot reach.
    """
    own = [_share(method) for method in methods]

    def raised(power: float) -> tuple[Method, ...]:
        return tuple(_with_share(method, share**power) for method, share in zip(methods, own, strict=True))

    def keeps(power: float) -> float:
        try:
            return average(joined(raised(power), info), info.layers)
        except ConfigurationError:  # a member cannot go so low
            return 0.0

    low, high = 0.0, 32.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if keeps(middle) >= keep else (low, middle)
    if keeps(low) > keep * (1 + 1e-6):
        names = ", ".join(method.name for method in methods)
        raise ConfigurationError(
            f"Compose({names}) cannot keep {keep:.3g} on average with these proportions; it stays above "
            f"{keeps(low):.3g}. Give an earlier method a smaller keep, or raise the overall one. "
            f"{_refusal(raised(high), info)}"
        )
    return raised(low) if keep < 1.0 else raised(0.0)


def _refusal(methods: Sequence[Method], info: ModelInfo) -> str:
    """What a method says to a budget that is too small for it."""
    try:
        joined(methods, info)
    except ConfigurationError as why:
        return f"({why})"
    return "(No method has a keep below 1.)"


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


def joined(methods: Sequence[Method], info: ModelInfo) -> Schedule:
    """Schedules of consecutive methods as one, relative to the tokens that enter the first."""
    found: list[tuple[int, float]] = []
    for method in methods:
        left = found[-1][1] if found else 1.0
        found += [(layer, left * share) for layer, share in _schedule(method, info)]
    return tuple(found) or ((0, 1.0),)


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
