"""What survives: a value, independent of models and hooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from foveate.errors import ConfigurationError


@dataclass(frozen=True)
class Merge:
    """Sparse weights of merged tokens: token `target[s]` becomes the sum of `weight * x[source]` over segment `s`.

    Attributes:
        target: `[t]` distinct positions among the *kept* tokens whose value is replaced.
        segment: `[nnz]` which target (0..t-1) an entry belongs to.
        source: `[nnz]` positions among the tokens *before* the selection.
        weight: `[nnz]` float32.
    """

    target: Tensor
    segment: Tensor
    source: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> Merge:
        return Merge(*(t.to(device) for t in (self.target, self.segment, self.source, self.weight)))

    @property
    def entry_target(self) -> Tensor:
        """`[nnz]` the target of every entry."""
        return self.target[self.segment]


@dataclass(frozen=True)
class Selection:
    """Which of `n` tokens survive, in order, and which of the survivors are mixtures.

    Attributes:
        n: number of tokens before.
        index: `[m]` int64, strictly increasing positions of the survivors.
        merge: weights of merged survivors; a survivor that is no target keeps its value.
        nearest: `[n]` by which survivor (0..m-1) each token is stood for in proportional attention; None: every
            survivor stands for as many as before.
    """

    n: int
    index: Tensor
    merge: Merge | None = None
    nearest: Tensor | None = None

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
        nearest = None if self.nearest is None else self.nearest.to(device)
        return replace(self, index=self.index.to(device), merge=self.merge and self.merge.to(device), nearest=nearest)

    def apply(self, x: Tensor, dim: int = 0) -> Tensor:
        """Select (and merge) along `dim`, which must have size `n`; result has size `len(self)` there."""
        out = x.index_select(dim, self.index)
        if self.merge is None:
            return out
        return mix(out.movedim(dim, 0), x.movedim(dim, 0), self.merge).movedim(0, dim)

    def then(self, other: Selection) -> Selection:
        """This selection followed by `other`, which selects among this one's survivors, without `nearest`."""
        index = self.index[other.index]
        if self.merge is None and other.merge is None:
            return Selection(self.n, index)
        # Both as dense matrices would be n x m; instead expand other's sources through this one's rows.
        first, second = _rows(self), _rows(other)
        start = torch.searchsorted(first.segment, second.source)
        stop = torch.searchsorted(first.segment, second.source, right=True)
        counts = stop - start
        pick = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        offset = torch.arange(len(pick), device=counts.device) - (counts.cumsum(0) - counts)[pick]
        entry = start[pick] + offset
        weight = second.weight[pick] * first.weight[entry]
        return Selection(self.n, index, Merge(second.target, second.segment[pick], first.source[entry], weight))


def mix(out: Tensor, x: Tensor, merge: Merge) -> Tensor:
    """Overwrite the rows `merge.target` of `out` `[m, ...]` with mixtures of rows of `x` `[n, ...]`.

    Sums in float32 at least, so that bf16 means of many tokens do not drift. Its gradient is that of the weighted sums,
    as no row is written twice.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    rows = torch.zeros(len(merge.target), *out.shape[1:], dtype=dtype, device=out.device)
    weight = merge.weight.to(dtype).view(-1, *(1,) * (x.dim() - 1))
    rows = rows.index_add(0, merge.segment, x.index_select(0, merge.source).to(dtype) * weight)
    return out.index_copy(0, merge.target, rows.to(out.dtype))


def _rows(selection: Selection) -> Merge:
    """Every survivor as a weighted row, in order: target and segment are the survivors' places, plain ones have
    weight 1."""
    m = torch.arange(len(selection), device=selection.index.device)
    if selection.merge is None:
        return Merge(m, m, selection.index, torch.ones(len(m), device=m.device))
    plain = ~torch.isin(m, selection.merge.target)
    target = torch.cat([m[plain], selection.merge.entry_target])
    source = torch.cat([selection.index[plain], selection.merge.source])
    weight = torch.cat([torch.ones(int(plain.sum()), device=m.device), selection.merge.weight])
    order = target.argsort(stable=True)
    return Merge(m, target[order], source[order], weight[order])


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
        return pick(x, self.index, batch_dim, dim)

    def apply(self, x: Tensor) -> Tensor:
        """Select and merge hidden states `[B, n, D]` -> `[B, m, D]`; padding is zero."""
        out = self.gather(x)
        if self.valid is not None:
            out = out.masked_fill(~self.valid.to(out.device)[..., None], 0)
        if not any(self.merges):
            return out
        rows = [out[row] if m is None else mix(out[row], x[row], m.to(x.device)) for row, m in enumerate(self.merges)]
        return torch.stack(rows)


def pick(x: Tensor, index: Tensor, batch_dim: int, dim: int) -> Tensor:
    """Select `index` `[B, m]` along `dim`; a batch dimension of size 1 is expanded."""
    rows = index.shape[0]
    index = index.to(x.device)
    if rows == 1 == x.shape[batch_dim]:
        return x.index_select(dim, index[0])
    x = x.movedim((batch_dim, dim), (0, 1))
    if x.shape[0] == 1 and rows > 1:
        x = x.expand(rows, *x.shape[1:])
    picked = x[torch.arange(rows, device=x.device)[:, None], index]
    return picked.movedim((0, 1), (batch_dim, dim))


def pack(rows: list[Selection]) -> Packed:
    """Left-pad the selections of a batch to the longest; no host synchronisation."""
    length = max(len(row) for row in rows)
    pads = [length - len(row) for row in rows]
    if len(rows) == 1:
        return Packed(rows[0].index[None], None, (rows[0].merge,))
    index = torch.stack([torch.nn.functional.pad(r.index, (p, 0)) for r, p in zip(rows, pads, strict=True)])
    merges = tuple(r.merge and replace(r.merge, target=r.merge.target + p) for r, p in zip(rows, pads, strict=True))
    valid = None
    if any(pads):
        left = torch.tensor(pads, device=index.device)[:, None]
        valid = torch.arange(length, device=index.device)[None] >= left
    return Packed(index, valid, merges)


Choice = Selection | Tensor
"""What a method returns: a Selection, sorted indices `[m]` (int64) or a boolean mask `[n]`."""


def resolve(choices: Sequence[Choice], sizes: Sequence[int], who: str) -> list[Selection]:
    """Turn what a method returns into selections, with one device-to-host copy for all masks together.

    Everything that can be seen without another copy is checked: kinds and sizes always, values where they are on the
    host.

    Args:
        choices: one for each image (or prompt).
        sizes: how many tokens each was made for.
        who: name of the method, for the error.

    Raises:
        ConfigurationError: for a choice that does not fit the tokens it was made for.
    """
    for choice, size in zip(choices, sizes, strict=True):
        if fault := _fault(choice, size):
            raise ConfigurationError(
                f"{who} chose {fault} of {size} tokens; `choose` must return sorted, distinct indices (int64) of the "
                "view's tokens, a boolean mask over them, or a Selection."
            )
    masks = [c for c in choices if isinstance(c, Tensor) and c.dtype == torch.bool]
    hosted = iter(torch.cat(masks).cpu().split([len(m) for m in masks]) if masks else [])  # the one sync
    result = []
    for choice, size in zip(choices, sizes, strict=True):
        if isinstance(choice, Selection):
            result.append(choice)
        elif choice.dtype == torch.bool:
            result.append(Selection.from_mask(next(hosted)).to(choice.device))
        else:
            result.append(Selection(size, choice))
    return result


def _fault(choice: object, size: int) -> str:
    """What is wrong with a choice, or an empty text."""
    if isinstance(choice, Selection):
        if choice.n != size:
            return f"from {choice.n} tokens instead"
        return _index_fault(choice.index, size) or (_merge_fault(choice.merge, choice) if choice.merge else "")
    if not isinstance(choice, Tensor):
        return f"a {type(choice).__name__}"
    if choice.dtype == torch.bool:
        return "" if choice.shape == (size,) else f"a mask of shape {list(choice.shape)}"
    return _index_fault(choice, size)


def _index_fault(index: Tensor, size: int) -> str:
    if index.dtype != torch.int64 or index.dim() != 1:
        return f"{str(index.dtype).removeprefix('torch.')} indices of shape {list(index.shape)}"
    if len(index) > size:
        return f"{len(index)} indices"
    if index.device.type != "cpu" or len(index) == 0:
        return ""
    values = index.numpy()  # nothing that a model would wait for
    low, high = values.min(), values.max()
    if low < 0 or high >= size:
        return f"indices from {low} to {high}"
    return "" if (values[1:] > values[:-1]).all() else "unsorted or repeated indices"


def _merge_fault(merge: Merge, selection: Selection) -> str:
    entries = {len(merge.segment), len(merge.source), len(merge.weight)}
    integers = all(t.dtype == torch.int64 and t.dim() == 1 for t in (merge.target, merge.segment, merge.source))
    if len(entries) != 1 or not integers or not merge.weight.is_floating_point() or merge.weight.dim() != 1:
        return "merges whose targets, segments, sources and weights do not fit each other"
    if merge.target.device.type != "cpu":
        return ""
    target = merge.target.numpy()
    limits = (
        ("targets", target, len(selection)),
        ("segments", merge.segment.numpy(), len(target)),
        ("sources", merge.source.numpy(), selection.n),
    )
    for name, values, limit in limits:
        if len(values) and (values.min() < 0 or values.max() >= limit):
            return f"merges with {name} outside 0..{limit - 1}"
    return "merges that write a target twice" if len(np.unique(target)) < len(target) else ""
