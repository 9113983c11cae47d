"""How an average budget over all decoder layers is spread over the stages of a method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from foveate.errors import ConfigurationError

Schedule = tuple[tuple[int, float], ...]
"""Stages as (layer, share alive from that layer on), layers and shares relative to what enters the method."""


def average(schedule: Schedule, layers: int) -> float:
    """Tokens per layer over the tokens that enter, for a model of that many layers."""
    bounds = [layer for layer, _ in schedule] + [layers]
    spans = [after - before for before, after in pairwise(bounds)]
    alive = bounds[0] + sum(share * span for (_, share), span in zip(schedule, spans, strict=True))
    return alive / layers


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


def solve(shape: Callable[[float], Schedule], keep: float, layers: int, who: str) -> Schedule:
    """The member of a family of schedules whose average is `keep`.

    Args:
        shape: schedule for a parameter in [0, 1]; its average must not fall as the parameter grows, and 1 must
            keep everything.
        who: name for the error.

    Raises:
        ConfigurationError: if even parameter 0 keeps more; says what can be reached.
    """
    lowest = average(shape(0.0), layers)
    if keep <= lowest:
        raise ConfigurationError(
            f"{who} cannot keep {keep:.3g} of the visual tokens on average: its first stage is before layer "
            f"{shape(0.0)[0][0]} of {layers}, and the layers before it read every token, so it stays above "
            f"{lowest:.3g}. Raise keep, select earlier, or put a method that prunes before the language model in "
            "front of it with Compose."
        )
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if average(shape(middle), layers) < keep else (low, middle)
    return shape(high)


def single_stage(layer: int, keep: float, layers: int, who: str) -> Schedule:
    """One stage before `layer`: the share after it that makes the average over all layers `keep`.

    Raises:
        ConfigurationError: if the layer does not exist or the layers before it alone exceed the average.
    """
    if not 0 <= layer < layers:
        raise ConfigurationError(f"{who} selects before layer {layer}, but the model has layers 0..{layers - 1}.")
    return solve(lambda share: ((layer, share),), keep, layers, who)
