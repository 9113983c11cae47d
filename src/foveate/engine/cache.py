"""A KV cache whose layers may be shorter than the conversation, and from one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

try:
    from transformers.cache_utils import DummyLayer
except ImportError:  # older versions have no layers without keys
    DummyLayer = DynamicLayer

from foveate.engine.conversation import Conversation
from foveate.engine.kept import Kept
from foveate.errors import CacheStateError, UnsupportedCacheError

PRUNABLE = (DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer, DummyLayer)
"""Layers that a cache may have: those without tokens (recurrent, shared) stay as they are."""


class FoveatedCache(DynamicCache):
    """`DynamicCache` that reports the *logical* length: the tokens of the conversation, pruned ones included.

    `generate` slices follow-up prompts and derives positions from `get_seq_length()`; with the logical
    length both stay right although the tensors are shorter. The state of pruning lives here, so threads,
    chats and methods that share a model do not mix.

    Attributes:
        kept: per layer, what it holds; None if it holds everything.
        conversation: which images each row has seen, and where its positions go on (stock models keep the latter on
            the model, where the next chat overwrites them).
        decode_from_cache: decode at positions that follow the pruned prompt (published code that does so).
        padded: whether the attention mask of the conversation hides anything (known on the host: a decoding step need
            not look).
        in_pass: whether a forward pass of ours is using it; only then may stock code ask for mask sizes.
    """

    kept: list[Kept | None]
    conversation: Conversation
    decode_from_cache: bool
    padded: bool
    in_pass: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._start()

    def _start(self) -> None:
        self.kept, self.conversation = [], Conversation()
        self.decode_from_cache = self.padded = self.in_pass = False

    @classmethod
    def adopt(cls, cache: Cache) -> FoveatedCache:
        """Turn a stock `DynamicCache` into a foveated one *in place*.

        `generate` and its caller already hold references to the cache; a copy would leave them with a stale
        object that reports the physical length.

        Raises:
            UnsupportedCacheError: for caches whose layers have a fixed size, are quantised or offloaded.
        """
        if isinstance(cache, cls):
            return cache
        check_cache(cache)
        cache.__class__ = cls
        assert isinstance(cache, cls)
        cache._start()
        return cache

    @property
    def is_pruned(self) -> bool:
        return any(kept is not None for kept in self.kept)

    def held(self, layer: int) -> Kept | None:
        return self.kept[layer] if layer < len(self.kept) else None

    def physical_length(self, layer: int) -> int:
        """Number of columns that the tensors of `layer` have."""
        entry = self.layers[layer] if layer < len(self.layers) else None
        if isinstance(entry, DynamicSlidingWindowLayer):  # counts what it has forgotten, too
            return 0 if entry.keys is None else entry.keys.shape[-2]
        return super().get_seq_length(layer) if isinstance(entry, DynamicLayer) else 0

    def shrinks(self, layer: int) -> bool:
        """Whether tokens can be taken out of a layer: it has keys per token, and no window."""
        return type(self.layers[layer]) is DynamicLayer and self.layers[layer].keys is not None

    def counting(self, layer: int = 0) -> int:
        """The layer itself, or the first that counts tokens (recurrent and shared ones do not)."""
        if layer >= len(self.layers) or isinstance(self.layers[layer], DynamicLayer):
            return layer
        return next((i for i, entry in enumerate(self.layers) if isinstance(entry, DynamicLayer)), layer)

    def free_window(self, layer: int, past: int) -> None:
        """Let a sliding layer hold whatever comes: of a subset of the tokens, the mask cuts the window by distance in
        the conversation, where the layer itself would count places.

        Args:
            past: logical tokens before this pass.
        """
        entry: Any = self.layers[layer] if layer < len(self.layers) else None
        if type(entry) is not DynamicSlidingWindowLayer:
            return
        free = DynamicLayer()
        if entry.keys is not None and entry.is_initialized:
            free.lazy_initialization(entry.keys, entry.values)
            free.keys, free.values = entry.keys, entry.values
            rows, held = entry.keys.shape[0], entry.keys.shape[-2]
            self.kept += [None] * (layer + 1 - len(self.kept))
            index = torch.arange(past - held, past, device=entry.keys.device).expand(rows, -1)
            self.kept[layer] = Kept(index, past, False)
        self.layers[layer] = free

    def get_seq_length(self, layer_idx: int = 0) -> int:
        layer_idx = self.counting(layer_idx)
        physical = super().get_seq_length(layer_idx)
        kept = self.held(layer_idx)
        return physical if kept is None else kept.until + physical - kept.index.shape[1]

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        if not self.is_pruned:
            return super().get_mask_sizes(query_length, layer_idx)
        # Stock code makes its mask for the whole conversation; hooks take every layer's columns out of it.
        if self.in_pass:
            return self.get_seq_length(layer_idx) + query_length, 0
        raise CacheStateError(
            "This KV cache was pruned and is now used outside foveate, where its shorter layers would be "
            "misread. Continue inside `with foveate.prune(model, method):` (method=None prunes nothing new)."
        )

    def nbytes(self) -> int:
        """Bytes of all key and value tensors."""
        tensors = [getattr(layer, name, None) for layer in self.layers for name in ("keys", "values")]
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    # -- operations of stock caches, carried over to the bookkeeping -------------------------------------

    def _map_rows(self, change: Callable[[Tensor], Tensor]) -> None:
        done: dict[int, Kept] = {}
        for kept in self.kept:
            if kept is not None and id(kept) not in done:
                done[id(kept)] = kept.with_rows(change)
        self.kept = [None if kept is None else done[id(kept)] for kept in self.kept]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._map_rows(lambda rows: rows.index_select(0, beam_idx.to(rows.device)))
        self.conversation.select(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._map_rows(lambda rows: rows.repeat_interleave(repeats, dim=0))
        self.conversation.repeat(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._map_rows(lambda rows: rows[indices.to(rows.device)])
        places = indices.nonzero().squeeze(1) if indices.dtype == torch.bool else indices
        self.conversation.select(places.tolist())

    def reset(self) -> None:
        super().reset()
        for layer in self.layers:  # zeroed tensors, as some versions leave them, would have a pruned length
            if isinstance(layer, DynamicLayer):
                layer.keys = layer.values = None
                layer.is_initialized = False
        self._start()

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens *of the conversation*, however many of them are held, with the
        images that stood there.

        Raises:
            CacheStateError: for a positive number (stock caches count what to remove, as a negative number).
        """
        if tokens_to_remove > 0:
            raise CacheStateError(f"crop({tokens_to_remove}): pass the number of tokens to remove, negative.")
        length = self.get_seq_length() + tokens_to_remove
        if length < 0:
            raise CacheStateError(f"crop({tokens_to_remove}): only {self.get_seq_length()} tokens were seen.")
        if tokens_to_remove == 0:
            return
        self.conversation.crop(length)
        self.padded &= length > 0
        cropped: dict[int, tuple[Tensor, Kept | None]] = {}
        for number, layer in enumerate(self.layers):
            kept = self.held(number)
            if getattr(layer, "keys", None) is None and isinstance(layer, (DynamicLayer, DummyLayer)):
                continue
            if kept is None or length >= kept.until or not isinstance(layer, DynamicLayer):
                layer.crop(tokens_to_remove)
                continue
            if id(kept) not in cropped:
                cropped[id(kept)] = kept.cropped(length)
            columns, shorter = cropped[id(kept)]
            layer.keys, layer.values = take_columns(layer.keys, columns), take_columns(layer.values, columns)
            self.kept[number] = shorter
        self.decode_from_cache &= self.is_pruned


def can_adopt(cache: object) -> bool:
    """Whether `cache` is a plain growing cache, which `FoveatedCache.adopt` takes."""
    try:
        check_cache(cache)
    except UnsupportedCacheError:
        return False
    return True


def check_cache(cache: object) -> None:
    """Raise `UnsupportedCacheError` unless `cache` is a plain growing cache on the model's devices."""
    remedy = "Leave `cache_implementation` unset and pass no `past_key_values`, or a transformers.DynamicCache."
    if type(cache) not in (DynamicCache, FoveatedCache):
        raise UnsupportedCacheError(
            f"{type(cache).__name__} cannot be pruned: its layers cannot shrink one by one. {remedy}"
        )
    assert isinstance(cache, DynamicCache)
    if getattr(cache, "offloading", False):
        raise UnsupportedCacheError(f"An offloaded cache cannot be pruned while it moves. {remedy}")
    for layer in cache.layers:
        if type(layer) not in PRUNABLE:
            raise UnsupportedCacheError(
                f"Cache layers of type {type(layer).__name__} cannot be pruned; layers with plain, sliding or "
                "recurrent attention can."
            )


def check_windows(cache: object, windowed: Sequence[int]) -> None:
    """Raise `UnsupportedCacheError` if a cache forgets what the model's own layers would remember.

    Args:
        windowed: layers of the model that see a window only.
    """
    for number, layer in enumerate(getattr(cache, "layers", ())):
        if type(layer) is DynamicSlidingWindowLayer and number not in windowed:
            raise UnsupportedCacheError(
                f"Layer {number} of this cache has a sliding window, but that of the model sees everything. Pass no "
                "`past_key_values`, or a transformers.DynamicCache made from the model's configuration."
            )


def select_columns(cache: FoveatedCache, layer: int, columns: Tensor, valid: Tensor | None) -> None:
    """Keep only `columns` `[B, m]` of a layer's tensors; entries where `valid` is False become zero."""
    entry = cache.layers[layer]
    for name in ("keys", "values"):
        kept = take_columns(getattr(entry, name), columns)
        if valid is not None:
            kept = kept.masked_fill(~valid.to(kept.device)[:, None, :, None], 0)
        setattr(entry, name, kept)


def take_columns(states: Tensor, columns: Tensor) -> Tensor:
    """`[B, H, n, d]` and `[B, m]` -> `[B, H, m, d]`."""
    columns = columns.to(states.device)
    if len(columns) == 1:
        return states.index_select(2, columns[0])
    columns = columns[:, None, :, None]
    return states.gather(2, columns.expand(-1, states.shape[1], -1, states.shape[3]))
