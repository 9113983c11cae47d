"""What survives: a value, independent of models and hooks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Merge:
    """Sparse weights of merged tokens: `out[target] = sum(weight * x[source])`.

    Attributes:
        target: `[nnz]` positions among the *kept* tokens whose value is replaced.
        source: `[nnz]` positions among the tokens *before* the selection.
        weight: `[nnz]` float32.
    """

    target: Tensor
    source: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> Merge:
        return Merge(self.target.to(device), self.source.to(device), self.weight.to(device))


@dataclass(frozen=True)
class Selection:
    """Which of `n` tokens survive, in order, and which of the survivors are mixtures.

    Attributes:
        n: number of tokens before.
        index: `[m]` int64, strictly increasing positions of the survivors.
        merge: weights of merged survivors; a survivor that is no target keeps its value.
    """

    n: int
    index: Tensor
    merge: Merge | None = None

    def __len__(self) -> int:
        return self.index.shape[0]

    @classmethod
    def everything(cls, n: int, device: torch.device | str = "cpu") -> Selection:
        return cls(n, torch.arange(n, device=device))

    @classmethod
    def from_mask(cls, mask: Tensor) -> Selection:
        """From a boolean mask `[n]`. Synchronises, as the number of survivors must be known on the host."""
        return cls(mask.shape[0], mask.nonzero().squeeze(1))

    @property
    def is_identity(self) -> bool:
        return len(self) == self.n and self.merge is None

    def to(self, device: torch.device) -> Selection:
        return replace(self, index=self.index.to(device), merge=self.merge and self.merge.to(device))

    def apply(self, x: Tensor, dim: int = 0) -> Tensor:
        """Select (and merge) along `dim`, which must have size `n`; result has size `len(self)` there."""
        out = x.index_select(dim, self.index)
        if self.merge is None:
            return out
        return mix(out.movedim(dim, 0).clone(), x.movedim(dim, 0), self.merge).movedim(0, dim)

    def then(self, other: Selection) -> Selection:
        """This selection followed by `other`, which selects among this one's survivors."""
        index = self.index[other.index]
        if self.merge is None and other.merge is None:
            return Selection(self.n, index)
        # Both as dense matrices would be n x m; instead expand other's sources through this one's rows.
        first, second = _rows(self), _rows(other)
        start = torch.searchsorted(first.target, second.source)
        stop = torch.searchsorted(first.target, second.source, right=True)
        counts = stop - start
        pick = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        offset = torch.arange(len(pick), device=counts.device) - (counts.cumsum(0) - counts)[pick]
        entry = start[pick] + offset
        merge = Merge(second.target[pick], first.source[entry], second.weight[pick] * first.weight[entry])
        return Selection(self.n, index, merge)


def mix(out: Tensor, x: Tensor, merge: Merge) -> Tensor:
    """Overwrite the rows `merge.target` of `out` `[m, ...]` with mixtures of rows of `x` `[n, ...]`.

    Sums in float32 whatever the dtype, so that bf16 means of many tokens do not drift.
    """
    rows = torch.zeros_like(out, dtype=torch.float32)
    weight = merge.weight.view(-1, *(1,) * (x.dim() - 1))
    rows.index_add_(0, merge.target, x.index_select(0, merge.source).float() * weight)
    out.index_copy_(0, merge.target, rows.index_select(0, merge.target).to(out.dtype))
    return out


def _rows(selection: Selection) -> Merge:
    """Every survivor as a weighted row, targets ascending: plain survivors become weight-1 rows."""
    m = torch.arange(len(selection), device=selection.index.device)
    if selection.merge is None:
        return Merge(m, selection.index, torch.ones(len(m), device=m.device))
    plain = ~torch.isin(m, selection.merge.target)
    target = torch.cat([m[plain], selection.merge.target])
    source = torch.cat([selection.index[plain], selection.merge.source])
    weight = torch.cat([torch.ones(int(plain.sum()), device=m.device), selection.merge.weight])
    order = target.argsort(stable=True)
    return Merge(target[order], source[order], weight[order])


@dataclass(frozen=True)
class Packed:
    """The survivors of every row of a batch, left-padded to one length.

    Attributes:
        index: `[B, m]` positions in the rows before; arbitrary (0) where `valid` is False.
        valid: `[B, m]` bool, or None if no row needed padding.
        merge: per row, or None.
    """

    index: Tensor
    valid: Tensor | None
    merges: tuple[Merge | None, ...]

    def gather(self, x: Tensor, batch_dim: int = 0, dim: int = 1) -> Tensor:
        """Select along `dim` of a batched tensor without merging; a batch dimension of size 1 is expanded."""
        rows = self.index.shape[0]
        x = x.movedim((batch_dim, dim), (0, 1))
        if x.shape[0] == 1 and rows > 1:
            x = x.expand(rows, *x.shape[1:])
        index = self.index.to(x.device)
        picked = x[torch.arange(rows, device=x.device)[:, None], index]
        return picked.movedim((0, 1), (batch_dim, dim))

    def apply(self, x: Tensor) -> Tensor:
        """Select and merge hidden states `[B, n, D]` -> `[B, m, D]`; padding is zero."""
        out = self.gather(x)
        if self.valid is not None:
            out = out.masked_fill(~self.valid.to(out.device)[..., None], 0)
        for row, merge in enumerate(self.merges):
            if merge is not None:
                out[row] = mix(out[row].clone(), x[row], merge.to(x.device))
        return out


def pack(rows: list[Selection]) -> Packed:
    """Left-pad the selections of a batch to the longest; no host synchronisation."""
    length = max(len(row) for row in rows)
    pads = [length - len(row) for row in rows]
    index = torch.stack([torch.nn.functional.pad(r.index, (p, 0)) for r, p in zip(rows, pads, strict=True)])
    merges = tuple(r.merge and replace(r.merge, target=r.merge.target + p) for r, p in zip(rows, pads, strict=True))
    valid = None
    if any(pads):
        left = torch.tensor(pads, device=index.device)[:, None]
        valid = torch.arange(length, device=index.device)[None] >= left
    return Packed(index, valid, merges)
