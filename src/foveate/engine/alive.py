"""The batch of token sequences as it shrinks from stage to stage of one prefill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from foveate.core.selection import Merge, Packed, Selection, pack
from foveate.core.tower import IN_TOWER
from foveate.engine.kept import Kept
from foveate.engine.layout import Group, Layout
from foveate.engine.masks import Later
from foveate.engine.proportional import joined_bias
from foveate.errors import InputError
from foveate.trace.records import PrefillTrace


class Block(NamedTuple):
    """The tokens that one layer was given: columns of the unpruned rows (None = all), number, any padding, and
    `[B, n]` log of how many tokens each stands for (None: one each)."""

    columns: Tensor | None
    length: int
    padded: bool
    bias: Tensor | None = None


class _Chosen(NamedTuple):
    """What a stage leaves of a group: which of its `N` tokens, `[m]`."""

    group: Group
    selection: Selection
    left: Tensor


@dataclass
class Alive:
    """Tokens alive in this forward pass.

    Attributes:
        index: `[B, n]` their columns in the unpruned rows, -1 on padding; None while nothing was dropped.
        valid: `[B, n]` bool on the device, None if nothing is padding.
        counts: real tokens per row (on the host).
        drops: how often tokens were dropped so far.
        appended: number of probe tokens behind every unpruned row.
        probe: how many of them are alive.
        bias: `[B, n]` float32, log of how many tokens each stands for; None: one each.
    """

    layout: Layout
    index: Tensor | None
    valid: Tensor | None
    counts: list[int]
    drops: int = 0
    appended: int = 0
    probe: int = 0
    bias: Tensor | None = None
    _known: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @classmethod
    def start(cls, layout: Layout, device: torch.device) -> Alive:
        valid = None if layout.valid is None else layout.valid.to(device)
        return cls(layout, None, valid, layout.counts())

    @property
    def length(self) -> int:
        return self.layout.length if self.index is None else self.index.shape[1]

    def to(self, device: torch.device) -> None:
        """Follow the layer's device (models spread over several)."""
        if self.index is not None:
            self.index = self.index.to(device)
        if self.valid is not None:
            self.valid = self.valid.to(device)
        if self.bias is not None:
            self.bias = self.bias.to(device)
        for group in self.layout.groups:
            for name in ("columns", "alive", "fixed", "visible"):
                setattr(group, name, getattr(group, name).to(device))

    def places(self, group: Group, tokens: Tensor) -> Tensor:
        """`[n]` where tokens of the group (of its `N`, all alive) stand in the current sequence."""
        return self._standing(group.row, group.columns[tokens])

    def _standing(self, row: int, columns: Tensor) -> Tensor:
        """Where columns of the unpruned row that are alive stand in the current sequence."""
        return columns if self.index is None else torch.searchsorted(self.index[row].contiguous(), columns.contiguous())

    def visual(self, row: int, device: torch.device) -> Tensor:
        """`[n]` bool: which current tokens of a row are visual."""
        mask = torch.zeros(self.length, dtype=torch.bool, device=device)
        for group in self.layout.groups:
            if group.row == row:
                mask[self.places(group, torch.cat([group.alive, group.fixed]))] = True
        return mask

    def later(self, whole: Later, device: torch.device) -> Later:
        """`whole`, about the unpruned rows, for the tokens alive now."""
        if self.index is None:
            return Later(whole.queries.to(device), whole.hidden.to(device))
        index = self.index.clamp(min=0).to(device)
        return Later(whole.queries.to(device).gather(1, index), whole.hidden.to(device).gather(1, index))

    def drop(self, selections: Sequence[Selection], survivors: Sequence[Tensor], probe: int = 0) -> Packed | None:
        """Apply one selection per group; returns how to re-pack the batch, or None if nothing changes.

        Args:
            survivors: `[m]` per group, which of its `N` tokens the selection leaves.
            probe: how many probe tokens stay; all or none.
        """
        if self.probe == probe and all(selection.is_identity for selection in selections):
            return None
        by_row: list[list[_Chosen]] = [[] for _ in range(self.layout.rows)]
        for chosen in map(_Chosen, self.layout.groups, selections, survivors):
            by_row[chosen.group.row].append(chosen)
        packed = pack([self._row(row, chosen, probe) for row, chosen in enumerate(by_row)])
        self._update(packed)
        self.probe = probe
        for group, left in zip(self.layout.groups, survivors, strict=True):
            group.alive = left
        if any(group.sizes is not None for group in self.layout.groups):
            self.bias = self._weigh()
        return packed

    def _weigh(self) -> Tensor:
        """`[B, n]` log of how many tokens each of the present ones stands for."""
        assert self.index is not None
        bias = torch.zeros(self.index.shape, device=self.index.device)
        for group in self.layout.groups:
            if group.sizes is not None:
                bias[group.row, self.places(group, group.alive)] = group.sizes[group.alive].log()
        return bias

    def _row(self, row: int, chosen: list[_Chosen], probe: int) -> Selection:
        """Selection over the whole row: all that is no group's, the chosen visual tokens, no padding."""
        own = [group.columns[left] for group, _, left in chosen]
        columns = torch.cat([self._others(row, probe), *own]).sort().values
        self.counts[row] = len(columns)
        index = self._standing(row, columns)
        merges = [
            Merge(
                torch.searchsorted(columns, left[selection.merge.target]),
                selection.merge.segment,
                self.places(group, group.alive[selection.merge.source]),
                selection.merge.weight,
            )
            for (group, selection, _), left in zip(chosen, own, strict=True)
            if selection.merge is not None
        ]
        return Selection(self.length, index, _join(merges) if merges else None)

    def _others(self, row: int, probe: int) -> Tensor:
        """`[o]` columns of a row's real tokens that no method chooses among, and of so many probe tokens."""
        if (row, probe) not in self._known:
            start = self.layout.length - self.appended
            columns = np.concatenate([self.layout.others[row], np.arange(start, start + probe)])
            self._known[row, probe] = torch.from_numpy(columns)
        return self._known[row, probe].to(self.layout.groups[0].columns.device)

    def _update(self, packed: Packed) -> None:
        index = packed.index if self.index is None else self.index.gather(1, packed.index)
        if packed.valid is not None:
            index = index.masked_fill(~packed.valid, -1)
        self.index, self.valid = index, packed.valid
        self.drops += 1


def before_method(groups: Sequence[Group], trace: PrefillTrace) -> list[Selection] | None:
    """Let a method see what the vision tower left, though the sequence still holds everything.

    Returns:
        What the tower left, of the tokens alive; None if it left everything.
    """
    if not any(steps for group in groups for steps in group.left):
        return None
    left = [Selection.from_mask(_in_features(group)[group.alive]) for group in groups]
    survivors = [group.alive[selection.index] for group, selection in zip(groups, left, strict=True)]
    trace.record(IN_TOWER, [group.alive for group in groups], survivors, left)
    for group, alive in zip(groups, survivors, strict=True):
        group.alive = alive
    return left


def with_tower(groups: Sequence[Group], left: Sequence[Selection], chosen: Sequence[Selection]) -> list[Selection]:
    """What a method chose of what the tower left, as choices among all that the sequence holds."""
    for group in groups:
        group.alive = group.visible
    return [tower.then(own) for tower, own in zip(left, chosen, strict=True)]


def _in_features(group: Group) -> Tensor:
    """`[N]` bool: which tokens of a group came out of the vision tower."""
    found, device = [], group.alive.device
    for grid, steps in zip(group.grids, group.left, strict=True):
        kept = torch.full((grid.size,), not steps, device=device)
        found.append(kept.index_fill(0, steps[-1].alive.to(device), True) if steps else kept)
    return torch.cat(found)


def check_fixed(group: Group) -> None:
    """Raise if a token that always stays has no features, since the tower dropped it.

    Raises:
        InputError: the prompt ends with such a token.
    """
    if any(group.left):
        fixed = group.fixed[group.fixed < group.total]
        if not bool(_in_features(group)[fixed].all()):
            raise InputError(
                "The prompt ends with an image whose last token was dropped in the vision tower, so there is nothing "
                "to predict an answer from; put text behind the image."
            )


def held_now(layout: Layout, old: Kept | None, block: Block, until: int) -> Kept:
    """What a layer's cache holds after a pass.

    Args:
        old: what it held before, None if everything.
        block: what it was given in this pass.
        until: logical end of the pass.
    """
    past, every = layout.past, torch.arange(layout.past + layout.length)
    new = every[: layout.length].expand(layout.rows, -1) if block.columns is None else block.columns
    if not past:
        return Kept(new, until, block.padded, block.bias)
    new = torch.where(new >= 0, new + past, -1)
    before = every[:past].expand(layout.rows, -1) if old is None else old.full(past)
    padded = block.padded or bool(old and old.padded)
    biases = None if old is None else old.full_bias(past), block.bias
    index = torch.cat([before.to(new.device), new], dim=1)
    return Kept(index, until, padded, joined_bias(*biases, before.shape, new.shape, index.device))


def scatter(hidden: Tensor, index: Tensor | None, length: int) -> Tensor:
    """Hidden states `[B, n, D]` of the tokens in columns `index` -> `[B, length, D]`, zero where one was dropped."""
    if index is None:
        return hidden
    index = index.to(hidden.device)
    places = torch.where(index >= 0, index, length)[..., None].expand_as(hidden)  # padding goes one too far
    full = hidden.new_zeros(hidden.shape[0], length + 1, hidden.shape[2]).scatter(1, places, hidden)
    return full[:, :length]


def _join(merges: list[Merge]) -> Merge:
    """The merges of a row's images as one."""
    if len(merges) == 1:
        return merges[0]
    starts = [sum(len(m.target) for m in merges[:number]) for number in range(len(merges))]
    return Merge(
        torch.cat([m.target for m in merges]),
        torch.cat([m.segment + start for m, start in zip(merges, starts, strict=True)]),
        torch.cat([m.source for m in merges]),
        torch.cat([m.weight for m in merges]),
    )
