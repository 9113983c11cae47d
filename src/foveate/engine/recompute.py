"""Gradient checkpointing: a backward pass runs decoder layers again, and their hooks must do the same again.

Where a model checkpoints `forward`, hooks stay outside and nothing is needed. Where it checkpoints `__call__` (older
transformers), the pre-hook runs again on the layer's unpruned input, after the forward pass is over. What it did the
first time is then found through the arguments, which the checkpoint passes on unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from foveate.core.probe import Probe
from foveate.core.selection import Packed
from foveate.errors import UnsupportedModelError

_CHANGES = "_foveate_changes"


@dataclass
class LayerChange:
    """What the hook of one decoder layer did in one forward pass.

    Attributes:
        packed: which tokens went on, None if nothing was dropped here.
        probe: whose vector was added to the hidden states.
        arguments: the layer's arguments that were replaced.
    """

    packed: Packed | None = None
    probe: Probe | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


def keep_for_backward(number: int, layer: nn.Module, kwargs: dict[str, Any], entry: LayerChange) -> None:
    """Keep an entry with the pass's rotary embeddings, which live as long as its graph."""
    if not (layer.training and getattr(layer, "gradient_checkpointing", False)):
        return
    embeddings = kwargs.get("position_embeddings")
    if not isinstance(embeddings, tuple):
        raise UnsupportedModelError(
            f"{type(layer).__name__} cannot be pruned with gradient checkpointing: what it is given does not identify "
            "the pass that it belongs to. Turn checkpointing off."
        )
    cos = embeddings[0]
    if not hasattr(cos, _CHANGES):
        setattr(cos, _CHANGES, {})
    getattr(cos, _CHANGES)[number] = entry


def apply_again(number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """New arguments of a layer that is run again, or None if it is not one of a pruned pass."""
    embeddings = kwargs.get("position_embeddings")
    known = isinstance(embeddings, tuple) and bool(embeddings)
    entry: LayerChange | None = getattr(embeddings[0], _CHANGES, {}).get(number) if known and embeddings else None
    if entry is None:
        return None
    hidden = args[0] if args else kwargs["hidden_states"]
    if entry.packed is not None:
        hidden = entry.packed.apply(hidden)
    if entry.probe is not None:
        hidden = entry.probe.add(number, hidden)
    kwargs = {k: v for k, v in kwargs.items() if k != "hidden_states"}
    return (hidden, *args[1:]), kwargs | entry.arguments
