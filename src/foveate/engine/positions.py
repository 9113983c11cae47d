"""Positions that stock code does not know: of renumbered survivors, and of new text behind known conversations."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.core.selection import Packed


def renumber(packed: Packed, valid_before: Tensor | None, mode: str) -> Tensor:
    """`[B, m]` new 1-D positions of the survivors.

    Args:
        mode: `"contiguous"`: 0, 1, 2, ...; `"index"`: place among the real tokens before the drop.
        valid_before: `[B, n]` bool real tokens before the drop, None if all are.
    """
    if mode == "contiguous":
        real = packed.valid if packed.valid is not None else torch.ones_like(packed.index, dtype=torch.bool)
        return (real.long().cumsum(1) - 1).clamp(min=0)
    if valid_before is None:
        return packed.index
    rank = valid_before.long().cumsum(1) - 1
    return rank.gather(1, packed.index).clamp(min=0)


def continued(offsets: Tensor, axes: int, rows: int, new: int, past: int, mask: Tensor | None) -> Tensor:
    """`[axes, B, n]` M-RoPE positions of new text.

    Args:
        offsets: `[B, 1]` of the conversation (`Conversation.offsets`).
        mask: `[B, past + n]` bool or None.
    """
    if mask is not None and new == 1:
        text = mask.sum(1, keepdim=True).add_(offsets).sub_(1)
    elif mask is not None:
        text = (mask.long().cumsum(1) - 1).clamp(min=0)[:, past:] + offsets
    elif new == 1:
        text = offsets + past
    else:
        text = torch.arange(past, past + new, device=offsets.device) + offsets
    return text.expand(axes, rows, new)


def behind_pruned(held: Tensor, until: int, new: int, past: int, mask: Tensor | None) -> Tensor:
    """`[B, n]` positions that follow the tokens which layer 0 holds, as published code decodes that renumbers.

    Args:
        held: `[B, m]` logical indices held of the first `until` tokens, -1 on padding.
        mask: `[B, past + n]` bool or None.
    """
    real = held >= 0
    if mask is not None:
        real = real & mask.bool().gather(1, held.clamp(min=0))
    if mask is None:
        return real.sum(1, keepdim=True) + (past - until) + torch.arange(new, device=held.device)
    since = mask[:, until:].long().cumsum(1)[:, past - until :]
    return (real.sum(1, keepdim=True) + since - 1).clamp(min=0)
