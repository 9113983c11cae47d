"""How an average budget over all decoder layers is spread over the stages of a method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from foveate.core.method import unreachable
from foveate.errors import ConfigurationError


def average(stages: Sequence[int], shares: Sequence[float], layers: int) -> float:
    """Tokens per layer over the tokens that enter, for a model of that many layers.

    Args:
        stages: layers before which a method selects, increasing.
        shares: what is alive after each, of the tokens that enter.
    """
    bounds = [*stages, layers]
    spans = [after - before for before, after in pairwise(bounds)]
    return (bounds[0] + sum(share * span for share, span in zip(shares, spans, strict=True))) / layers


def scaled_layers(published: Sequence[int], depth: int, layers: int, who: str) -> tuple[int, ...]:
    """Stage layers published for a model of `depth` layers, moved to the same relative depth in another.

    Raises:
        ConfigurationError: if the model has too few layers for so many stages.
    """
    found: list[int] = []
    for layer in published:
        found.append(max(round(layer * layers / depth), found[-1] + 1 if found else 1))
    if found[-1] >= layers:
        raise ConfigurationError(
            f"{who} has {len(found)} stages inside the language model; {layers} layers are too few."
        )
    return tuple(found)


def solve(
    stages: Sequence[int], shape: Callable[[float], Sequence[float]], keep: float, layers: int, who: str
) -> tuple[float, ...]:
    """The member of a family of shares whose average is `keep`.

    Args:
        stages: layers before which the method selects.
        shape: shares for a parameter in [0, 1]; their average must not fall as the parameter grows, and 1 must keep
            everything.
        who: name for the error.

    Raises:
        ConfigurationError: if even parameter 0 keeps more; says what can be reached.
    """
    lowest = average(stages, shape(0.0), layers)
    if keep <= lowest:
        raise ConfigurationError(unreachable(who, keep, stages[0], layers, lowest))
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if average(stages, shape(middle), layers) < keep else (low, middle)
    return tuple(shape(high))
