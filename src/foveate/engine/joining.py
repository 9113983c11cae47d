"""Rows of different prompts in one batch: they join after their own prefills and leave when they are done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.engine.cache import FoveatedCache
from foveate.engine.kept import Kept, join_kept
from foveate.engine.naming import CACHE
from foveate.errors import CacheStateError


def renumbers(cache: FoveatedCache) -> bool:
    """Whether decoding goes on behind the pruned prompt; rows that do and rows that do not cannot share a batch."""
    return cache.decode_from_cache and cache.held(cache.counting()) is not None


def can_join(cache: FoveatedCache) -> bool:
    """Whether every layer holds keys per token. Windows and recurrent states have no place for padding."""
    return all(cache.shrinks(layer) for layer in range(len(cache.layers)))


class RowBatch:
    """Conversations that are decoded together, one token for every row at a time.

    Rows are padded on the left, logically (prompts of different lengths) and physically (layers of one row hold
    other numbers of columns than those of another).

    Args:
        cache: of one or more rows, filled by a prefill.
        lengths: per row, real tokens that the cache has seen, dropped ones included.

    Attributes:
        cache, lengths: as given, and brought forward by every operation.
    """

    def __init__(self, cache: FoveatedCache, lengths: Sequence[int]) -> None:
        self.cache, self.lengths = cache, list(lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def columns(self) -> list[int]:
        """Columns that the tensors of every layer have, padding included."""
        return [self.cache.physical_length(layer) for layer in range(len(self.cache.layers))]

    def repeat(self, times: int) -> None:
        """Every row `times` times in a row."""
        if times > 1:
            self.cache.batch_repeat_interleave(times)
            self.lengths = [length for length in self.lengths for _ in range(times)]

    def join(self, others: Sequence[RowBatch]) -> None:
        """Append the rows of other batches, which are used up: their tensors are released layer by layer, so that at
        no time two copies of everything are held.

        Raises:
            CacheStateError: decoding positions are counted in another way there, or a layer takes no padding.
        """
        if not others:
            return
        every = [self, *others]
        if len({renumbers(batch.cache) for batch in every}) > 1:
            raise CacheStateError(
                "Rows whose decoding positions follow the pruned prompt cannot share a batch with rows whose positions "
                "follow the whole prompt. Keep them in batches of their own."
            )
        caches = [batch.cache for batch in every]
        if not all(map(can_join, caches)):
            raise CacheStateError(
                "Layers with a sliding window, a recurrent state or the keys of other layers take no padding, so other "
                "rows cannot join them. Keep such rows in batches of their own."
            )
        lengths = [cache.get_seq_length() for cache in caches]
        joined: dict[tuple[int, ...], Kept | None] = {}
        kept: list[Kept | None] = []
        for layer in range(len(self.cache.layers)):
            held = [cache.held(layer) for cache in caches]
            key = tuple(map(id, held))
            if key not in joined:
                joined[key] = join_kept(held, [batch.lengths for batch in every], lengths)
            kept.append(joined[key])
            _join_tensors(caches, layer, max(lengths) if joined[key] is None else 0)
        flag = renumbers(self.cache)
        _join_conversations(caches, [len(batch) for batch in every], lengths)
        self.cache.kept, self.cache.decode_from_cache = kept, flag
        self.lengths = [length for batch in every for length in batch.lengths]
        self._note_padding()

    def drop(self, rows: Sequence[int]) -> None:
        """Take rows out and trim what only they needed.

        Raises:
            CacheStateError: no row would be left; drop the batch itself then.
        """
        gone = set(rows)
        stay = [row for row in range(len(self)) if row not in gone]
        if not stay:
            raise CacheStateError("A batch without rows: let go of the batch instead of dropping its last row.")
        if len(stay) < len(self):
            self.cache.batch_select_indices(torch.tensor(stay, device=self._device))
            self.lengths = [self.lengths[row] for row in stay]
            self.trim()

    def trim(self) -> None:
        """Drop columns that are padding in every row."""
        cache = self.cache
        spare = cache.get_seq_length() - max(self.lengths)
        trimmed: dict[int, tuple[int, Kept | None]] = {}
        for number, layer in enumerate(cache.layers):
            kept = cache.held(number)
            if id(kept) not in trimmed:
                trimmed[id(kept)] = (spare, None) if kept is None else kept.trimmed(spare)
            lead, now = trimmed[id(kept)]
            if kept is not None:
                cache.kept[number] = now
            if lead:  # a copy: a slice would hold the memory
                layer.keys, layer.values = layer.keys[:, :, lead:].clone(), layer.values[:, :, lead:].clone()
        cache.conversation.shift(-spare)
        self._note_padding()

    @property
    def _device(self) -> torch.device:
        keys: Tensor = self.cache.layers[self.cache.counting()].keys
        return keys.device

    def _note_padding(self) -> None:
        """A decoding step reads the mask only if the cache says that it hides something."""
        self.cache.padded = min(self.lengths) < self.cache.get_seq_length()

    def mask(self, new: int = 0) -> Tensor:
        """`[B, length + new]` which logical columns are real, `new` coming tokens included."""
        width, device = self.cache.get_seq_length() + new, self._device
        starts = torch.tensor([width - new - length for length in self.lengths], device=device)
        return (torch.arange(width, device=device) >= starts[:, None]).long()

    def decode(self, model: Any, tokens: Sequence[int]) -> Tensor:
        """Logits `[B, V]` after one more token for every row. Call it under `prune(model, None)`."""
        device = model.device
        mask = self.mask(1).to(device)
        positions = torch.tensor(self.lengths, device=device)[:, None]
        if self.cache.conversation.mrope:  # text counts alike on all three axes
            positions = positions.expand(3, -1, -1)
        out = model(
            input_ids=torch.tensor([[token] for token in tokens], device=device),
            attention_mask=mask,
            position_ids=positions,
            **{CACHE: self.cache},
            use_cache=True,
        )
        self.lengths = [length + 1 for length in self.lengths]
        logits: Tensor = out.logits[:, -1]
        return logits


def _join_tensors(caches: Sequence[FoveatedCache], number: int, least: int) -> None:
    """One layer's keys and values of all caches, in the first; those of the others are released."""
    layers = [cache.layers[number] for cache in caches]
    for name in ("keys", "values"):
        parts = [getattr(layer, name) for layer in layers]
        width = max(least, *(part.shape[2] for part in parts))
        for layer in layers:
            setattr(layer, name, None)
        setattr(layers[0], name, torch.cat([F.pad(part, (0, 0, width - part.shape[2], 0)) for part in parts]))


def _join_conversations(caches: Sequence[FoveatedCache], rows: Sequence[int], lengths: Sequence[int]) -> None:
    first, *others = [cache.conversation for cache in caches]
    if any(conversation.rows for conversation in (first, *others)):
        for conversation, count in zip((first, *others), rows, strict=True):
            conversation.rows = conversation.rows or [[] for _ in range(count)]  # text alone left no record
    for conversation, length in zip((first, *others), lengths, strict=True):
        conversation.shift(max(lengths) - length)
    first.mrope = any(conversation.mrope for conversation in (first, *others))
    first.join(others)
