"""What the layers of a KV cache hold of a conversation: which tokens, and how many each of them stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(eq=False)
class Kept:
    """What one or more layers hold of the first `until` tokens of the conversation.

    Attributes:
        index: `[B, m]` logical indices, increasing; -1 is padding (always on the left of a block).
        until: number of logical tokens this covers; later tokens are all held, in order.
        padded: whether any entry is -1 (known on the host, to spare a synchronisation).
        bias: `[B, m]` float32, log of how many tokens each stands for (proportional attention); None: one each.
        masks: what decoding masks of these columns were made, so that a step need not make them again.
    """

    index: Tensor
    until: int
    padded: bool
    bias: Tensor | None = None
    masks: dict[Any, Tensor] = field(default_factory=dict, repr=False)

    def full(self, length: int) -> Tensor:
        """`[B, m + length - until]` logical index of everything held when `length` tokens were seen."""
        tail = torch.arange(self.until, length, device=self.index.device)
        return torch.cat([self.index, tail.expand(self.index.shape[0], -1)], dim=1)

    def full_bias(self, length: int) -> Tensor | None:
        """`[B, m + length - until]` the bias of everything held; a later token stands for itself."""
        return None if self.bias is None else F.pad(self.bias, (0, length - self.until))

    def with_rows(self, change: Callable[[Tensor], Tensor]) -> Kept:
        """The same of other rows."""
        return Kept(change(self.index), self.until, self.padded, None if self.bias is None else change(self.bias))

    def cropped(self, length: int) -> tuple[Tensor, Kept | None]:
        """Columns that hold tokens before `length`, right-aligned so that rows stay left-padded; None if everything
        that is left is held."""
        alive = (self.index >= 0) & (self.index < length)
        counts = alive.sum(1).tolist()
        most, padded = max(counts), min(counts) < max(counts)
        order = alive.to(torch.int8).argsort(dim=1, stable=True)  # dropped first, survivors last, both in order
        columns = order[:, order.shape[1] - most :]
        if most == length and not padded:
            return columns, None
        index = self.index.gather(1, columns)
        index = index.masked_fill(~alive.gather(1, columns), -1) if padded else index
        bias = None if self.bias is None else self.bias.gather(1, columns).masked_fill(index < 0, 0)
        return columns, Kept(index, length, padded, bias)

    def trimmed(self, spare: int) -> tuple[int, Kept | None]:
        """How many leading columns are padding in every row, and what is held of a conversation that is `spare` tokens
        shorter at its beginning; None if that is everything."""
        real = self.index >= 0
        lead = int(real.any(0).to(torch.int8).argmax())
        real, index, until = real[:, lead:], self.index[:, lead:], self.until - spare
        padded = not bool(real.all())
        if not padded and index.shape[1] == until:
            return lead, None
        bias = None if self.bias is None else self.bias[:, lead:]
        return lead, Kept(torch.where(real, index - spare, -1), until, padded, bias)


def join_kept(held: Sequence[Kept | None], rows: Sequence[list[int]], lengths: Sequence[int]) -> Kept | None:
    """What a layer holds of the joined rows; None if every row is whole.

    Args:
        held, lengths: of every cache: what it holds, and the logical columns that it has seen.
        rows: of every cache, real tokens of its rows. What stands before them is padding, also in a layer that holds
            every column.
    """
    known = [kept for kept in held if kept is not None]
    if not known:
        return None
    device, found, biases = known[0].index.device, [], []
    for kept, real, own in zip(held, rows, lengths, strict=True):
        starts = torch.tensor([[own - length] for length in real], device=device)
        index = torch.arange(own, device=device) if kept is None else kept.full(own).to(device)
        found.append(torch.where(index >= starts, index + (max(lengths) - own), -1))
        bias = None if kept is None else kept.full_bias(own)
        biases.append(torch.zeros(found[-1].shape, device=device) if bias is None else bias.to(device))
    width = max(index.shape[1] for index in found)
    index = _left_padded(found, width, -1)
    weighted = any(kept.bias is not None for kept in known)
    bias = _left_padded(biases, width, 0).masked_fill(index < 0, 0) if weighted else None
    return Kept(index, max(lengths), bool((index < 0).any()), bias)


def _left_padded(parts: Sequence[Tensor], width: int, value: int) -> Tensor:
    return torch.cat([F.pad(part, (width - part.shape[1], 0), value=value) for part in parts])
