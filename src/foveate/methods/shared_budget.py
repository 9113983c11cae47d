"""One budget for several methods in a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from foveate.core.budget import Keep
from foveate.core.method import Method
from foveate.core.view import ModelInfo
from foveate.errors import ConfigurationError
from foveate.maths.schedule import average


def budgeted(methods: Sequence[Method], keep: float, info: ModelInfo, ceiling: float = 1.0) -> tuple[Method, ...]:
    """All methods with their `keep` raised to the power that makes the overall average `keep`.

    Args:
        ceiling: share of the tokens that reaches the language model at all.

    Raises:
        ConfigurationError: a method without a share to change, or an average that they cannot reach.
    """
    own = [_share(method) for method in methods]

    def raised(power: float) -> tuple[Method, ...]:
        return tuple(_with_share(method, share**power) for method, share in zip(methods, own, strict=True))

    def keeps(power: float) -> float:
        try:
            return average(*joined(raised(power), info, ceiling), info.layers)
        except ConfigurationError:  # a member cannot go so low
            return 0.0

    if keep >= ceiling:
        return raised(0.0)
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
    return raised(low)


def joined(methods: Sequence[Method], info: ModelInfo, ceiling: float = 1.0) -> tuple[list[int], list[float]]:
    """Stage layers of consecutive methods, and the shares alive after each of the tokens that enter the first."""
    layers, shares = [0], [1.0]
    for method in methods:
        left = shares[-1]
        if method.prunes and (share := _share(method)) < 1.0:
            layers += [stage.layer for stage in method.stages(info)]
            shares += [left * own for own in ([share] if _is_capped(method) else method.shares(info, share))]
    return layers, [min(share, ceiling) for share in shares]


def _refusal(methods: Sequence[Method], info: ModelInfo) -> str:
    """What a method says to a budget that is too small for it."""
    try:
        joined(methods, info)
    except ConfigurationError as why:
        return f"({why})"
    return "(No method has a keep below 1.)"


def _share(method: Method) -> float:
    """The member's own budget as a share; of one whose number depends on the input, its cap."""
    if _is_capped(method):
        cap = method.budget.cap
        budget = None if isinstance(cap, int) else Keep(ratio=1.0 if cap is None else cap)
    else:
        budget = None if method.keep is None else method.budget
    if budget is None or budget.ratio is None or budget.cap is not None:
        raise ConfigurationError(
            f"Compose: {method.name} has no budget that is a share of the tokens, so no overall budget can be divided; "
            "give it one, for example keep=1/3, or leave out the overall keep."
        )
    return budget.ratio


def _with_share(method: Any, share: float) -> Method:
    found: Method
    if _is_capped(method):
        found = method if share == 1.0 else replace(method, max_keep=share)
    else:
        found = replace(method, keep=method.budget.share(share))
    return found


def _is_capped(method: Method) -> bool:
    return method.keep is None and hasattr(method, "max_keep")
