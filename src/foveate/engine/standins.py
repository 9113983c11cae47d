"""What stands in for readings of a vision tower that cannot be read: projected features, and how they differ."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.core.method import Method
from foveate.core.view import Tap
from foveate.families.base import Family
from foveate.maths.diversity import coverage, max_min
from foveate.maths.similarity import unit


def needs_stand_ins(family: Family, method: Method | None) -> bool:
    """Whether such a method reads a tower that cannot be read, and takes projected features instead."""
    if method is None or family.unreadable is None or not method.takes_features:
        return False
    return bool(method.taps(family.info))


def stand_in(tap: Tap, features: Tensor, alive: Tensor, total: int) -> Tensor:
    """`[N, ...]` in place of a reading; tokens that are not alive get zeros.

    Args:
        features: `[n, D]` of the tokens alive, as they enter the layer (before layer 0: as projected).
        alive: `[n]` which of the `N` they are.
    """
    values = diversity(features) if tap.kind == "received" else features.float()
    return values.new_zeros(total, *values.shape[1:]).index_copy_(0, alive, values)


def diversity(features: Tensor) -> Tensor:
    """`[n]` shares of one whole, largest for the token that greedy max-min choice takes first.

    It begins with the token least like the mean of all. The half that it would take last is ranked by how much each
    differs from the half chosen, which needs no further rounds.
    """
    n, own = len(features), unit(features)
    start = (own @ own.mean(0)).argmin().view(1)
    chosen = max_min(features, max(1, n // 2), start)
    like = coverage(own, own[chosen]).index_fill_(0, chosen, float("inf"))
    rest = like.argsort(stable=True)[: n - len(chosen)]
    rank = torch.empty(n, device=features.device)
    rank[torch.cat([chosen, rest])] = torch.arange(n, 0, -1, device=features.device, dtype=rank.dtype)
    return rank / rank.sum()
