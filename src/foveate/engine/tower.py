"""Seam 1: the vision tower is read while it runs."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.attention import attention_rows, received_attention
from foveate.core.view import Tap
from foveate.engine import tower_pruning
from foveate.engine.capture import AttentionCall
from foveate.engine.inputs import by_name
from foveate.engine.layout import TowerImage
from foveate.engine.session import Session, TowerCall


def before_tower(session: Session, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Note which images come."""
    local = session.local
    local.readings = {}
    local.grids = session.family.tower_grids(args, kwargs)
    local.patches = session.family.tower_patches(args, kwargs, local.grids)
    local.pruning = tower_pruning.begin(session, module, local.grids, by_name(module, args, kwargs))
    local.started = local.vision.start(_device(args, kwargs))


def heard(tap: Tap, session: Session, call: AttentionCall) -> None:
    """Attention received, in a block of which `tap` reads it; called once per segment or for all of them."""
    local = session.local
    if tap not in session.taps or local.started is None:  # started: not when a backward pass recomputes the block
        return
    family = session.family
    with local.tapping.span(call.q.device), torch.no_grad():
        if family.has_class_token:
            token = -1 if family.class_token_last else 0
            seen = call if local.pruning is not None and call.mask is not None else None  # a mask hides padding
            last = torch.tensor([token], device=call.q.device)
            rows = [
                attention_rows(q[:, token, None], k, call.scaling, None if seen is None else seen.allowed(row, last))[
                    :, 0
                ]
                for row, (q, k) in enumerate(zip(call.q, call.k, strict=True))
            ]
            values = torch.stack(rows).sum(1)  # [images, tokens]
        else:
            patches = local.patches
            if local.pruning is not None:
                patches = [len(alive) * family.factor**2 for alive in local.pruning.now.alive]
            values = _received(call, patches, tap)
        local.readings.setdefault(tap, []).append(values)


def _received(call: AttentionCall, patches: list[int], tap: Tap) -> Tensor:
    """`[B, n]` attention that patches receive from those of the same image; padding receives none.

    Args:
        patches: of every image in this call of the tower.
    """
    rows, n = call.q.shape[0], call.q.shape[2]
    if call.bounds is not None:
        lengths = [call.bounds.diff().tolist()]
    elif rows == 1 and len(patches) > 1 and n == sum(patches):  # images behind one another, told apart by a mask
        lengths = [patches]
    elif rows == len(patches) and all(own <= n for own in patches):  # an image per row, padded
        lengths = [[own] for own in patches]
    else:
        lengths = [[n]] * rows
    found = [
        received_attention(q[:, : sum(own)], k[:, : sum(own)], call.scaling, own, tap.queries)
        for q, k, own in zip(call.q, call.k, lengths * (rows if len(lengths) == 1 else 1), strict=True)
    ]
    return torch.stack([torch.nn.functional.pad(row, (0, n - len(row))) for row in found])


def key_reader(tap: Tap) -> Any:
    """Post-hook on the module whose output holds the keys before rotary embedding."""

    @torch.no_grad()
    def read(session: Session, module: nn.Module, args: Any, output: Tensor) -> None:
        local = session.local
        if tap in session.taps and local.started is not None:
            family = session.family
            keys = family.key_features(family.parts.blocks[family.block_of(tap)])[1](output)
            local.readings[tap] = [keys.clone()]

    return read


def hidden_reader(tap: Tap) -> Any:
    """Post-hook on a block."""

    def read(session: Session, module: nn.Module, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        local = session.local
        if tap in session.taps and local.started is not None:
            local.readings[tap] = [hidden.detach()]

    return read


def after_tower(session: Session, module: nn.Module, args: Any, output: Any) -> None:
    """Give every image its readings. `output` is None if the tower raised."""
    local = session.local
    if local.started is None:
        return
    local.vision.stop(local.started)
    local.started = None
    if output is None:
        return
    pruning = local.pruning
    tower_pruning.restore(pruning, output)
    images = [TowerImage(grid, {}) for grid in local.grids]
    if pruning is not None:
        images = [TowerImage(grid, {}, pruning.steps(number)) for number, grid in enumerate(local.grids)]
    for tap, values in local.readings.items():
        with local.tapping.span(values[0].device), torch.no_grad():
            tokens = tower_pruning.tokens_of(session.family, tap, values, local.grids, pruning)
            for image, value in zip(images, tokens, strict=True):
                image.taps[tap] = value
    local.readings = {}
    local.remember(TowerCall(images, _reference(output)))


def _device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    return tensors[0].device if tensors else torch.device("cpu")


def _reference(output: Any) -> weakref.ref[Tensor] | None:
    """A weak reference to the tower's hidden states, which its features' owner holds too."""
    hidden = output if isinstance(output, Tensor) else getattr(output, "last_hidden_state", None)
    return weakref.ref(hidden) if isinstance(hidden, Tensor) else None
