"""Proportional attention: a survivor counts for all tokens that it stands for.

Dropping tokens changes what attention averages over: a background of five hundred tokens weighs no more than the few
that are left of it. With the log of the number that each survivor stands for added to its logits, groups of tokens
weigh what they did (ToMe, arXiv 2210.09461, for merged tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from foveate.core.method import Method
from foveate.core.selection import Selection
from foveate.core.view import View
from foveate.engine.layout import Group
from foveate.errors import ConfigurationError
from foveate.families.base import Family
from foveate.maths.similarity import closest

BACKENDS = ("sdpa", "eager")
"""Attention functions that take a mask to be added to logits."""


def weighs(family: Family, method: Method) -> bool:
    """Whether attention is to be proportional: as asked, or where a method recommends it and the backend can.

    Raises:
        ConfigurationError: it was asked for, and the attention function takes no mask to be added.
    """
    if not method.weighs(family.info):
        return False
    config: Any = family.parts.text.config
    if config._attn_implementation in BACKENDS:
        return True
    if method.proportional:
        raise ConfigurationError(
            f"{method} adds to the logits of attention, for which {config._attn_implementation} takes no mask. Load "
            f"the model with attn_implementation={BACKENDS[0]!r}, or set proportional=False."
        )
    return False


def standing_for(view: View, selection: Selection) -> Selection:
    """The same, with the survivor that each token is most like."""
    if len(selection) in (0, selection.n):
        return selection
    return replace(selection, nearest=closest(view.hidden, selection.index))


def weigh(groups: Sequence[Group], selections: Sequence[Selection], survivors: Sequence[Tensor]) -> None:
    """Note how many tokens each survivor stands for, where attention is proportional to that.

    Args:
        selections: what was chosen of each group.
        survivors: `[m]` per group, which of its `N` tokens that leaves.
    """
    for group, selection, left in zip(groups, selections, survivors, strict=True):
        if selection.nearest is not None:
            device = group.alive.device
            sizes = torch.ones(group.total, device=device) if group.sizes is None else group.sizes.to(device)
            found = torch.zeros(len(left), device=device).index_add_(0, selection.nearest, sizes[group.alive])
            group.sizes = torch.ones_like(sizes).index_copy_(0, left, found)


def joined_bias(
    before: Tensor | None, now: Tensor | None, held: Sequence[int], new: Sequence[int], device: torch.device
) -> Tensor | None:
    """`[B, m + n]` the biases of `held` `[B, m]` earlier columns and of `new` `[B, n]` ones; None if there are none."""
    if before is None and now is None:
        return None
    parts = ((before, held), (now, new))
    return torch.cat([torch.zeros(*s, device=device) if b is None else b.to(device) for b, s in parts], dim=1)


def biased(made: Any, bias: Tensor, hidden: Tensor) -> Tensor:
    """A mask with `bias` added to every query's logits.

    Args:
        made: the backend's mask, `[B | 1, 1, n, k]` bool or additive; None: causal.
        bias: `[B, k]` float32.
        hidden: `[B, n, D]`, read for shape, dtype and device only.
    """
    bias = bias.to(hidden.device, hidden.dtype)[:, None, None]
    n, k = hidden.shape[1], bias.shape[-1]
    if made is None:
        if n == 1:
            return bias
        made = torch.ones(n, k, dtype=torch.bool, device=hidden.device).tril(k - n)[None, None]
    if made.dtype != torch.bool:
        return made + bias
    return torch.where(made, bias, torch.finfo(hidden.dtype).min)
