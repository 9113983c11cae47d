"""Operations of stock caches on a pruned one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import QuantizedCache, StaticCache
from transformers.cache_utils import DynamicCache

import foveate
from foveate.engine.cache import FoveatedCache
from foveate.errors import CacheStateError, UnsupportedCacheError
from tests.reference import Drop
from tests.tiny import Tiny

ROWS = [[3, (4, 4), 5], [2, (4, 6), 3, (2, 4), 4], [7]]


def prefill(tiny: Tiny, method: Drop, rows: list = ROWS) -> tuple[FoveatedCache, dict[str, Tensor], foveate.Trace]:
    inputs = tiny.batch(rows)
    with foveate.prune(tiny.model, method) as trace, torch.no_grad():
        cache = tiny.model(**inputs, use_cache=True).past_key_values
    return cache, inputs, trace


def step(tiny: Tiny, cache: Any, mask: Tensor, token: int = 7) -> Tensor:
    """Logits of one more token for every row."""
    rows = mask.shape[0]
    longer = torch.cat([mask, mask.new_ones(rows, 1)], 1)
    text = (longer.cumsum(1) - 1)[:, -1:]
    positions = text if tiny.family == "llava" else text[None].expand(3, -1, -1)
    ids = torch.full((rows, 1), token)
    with foveate.prune(tiny.model, None), torch.no_grad():
        out = tiny.model(input_ids=ids, attention_mask=longer, position_ids=positions, past_key_values=cache)
    return out.logits[:, -1]


def test_lengths_and_bytes(tiny: Tiny) -> None:
    cache, inputs, trace = prefill(tiny, Drop((0, 3)), [[3, (4, 4), 5]])
    text = inputs["input_ids"].shape[1] - 16
    physical = [cache.physical_length(i) for i in range(len(cache))]
    assert physical == [text + 8] * 3 + [text + 4] * 3
    assert all(cache.get_seq_length(i) == text + 16 for i in range(len(cache)))
    assert trace.kv_bytes == sum(t.numel() * t.element_size() for la in cache.layers for t in (la.keys, la.values))
    assert trace.last.kv_bytes_unpruned == trace.kv_bytes * 6 * (text + 16) // sum(physical)


@pytest.mark.parametrize("rows", [[[3, (4, 4), 5]], ROWS])
def test_earlier_layers_can_be_compacted(tiny: Tiny, rows: list) -> None:
    cache, inputs, _ = prefill(tiny, Drop((2, 4), compact=True), rows)
    plain, _, _ = prefill(tiny, Drop((2, 4)), rows)
    assert len({cache.physical_length(i) for i in range(len(cache))}) == 1
    assert cache.nbytes() < plain.nbytes()
    last = len(cache) - 1
    assert torch.equal(cache.layers[last].keys, plain.layers[last].keys)
    # the entries that remain are the ones of the uncompacted cache
    kept, every = cache.kept[0].index, plain.kept[0]
    for row in range(len(rows)):
        columns = kept[row][kept[row] >= 0]
        if every is not None:
            columns = torch.searchsorted(every.index[row], columns)
        real = kept[row] >= 0
        assert torch.equal(cache.layers[0].keys[row][:, real], plain.layers[0].keys[row][:, columns])
    assert torch.isfinite(step(tiny, cache, inputs["attention_mask"])).all()


def test_crop_forgets_text(tiny: Tiny) -> None:
    cache, inputs, _ = prefill(tiny, Drop((0, 3)))
    mask = inputs["attention_mask"]
    expected = step(tiny, copy.deepcopy(cache), mask)
    longer = copy.deepcopy(cache)
    step(tiny, longer, mask, token=11)
    longer.crop(-1)
    assert longer.get_seq_length() == cache.get_seq_length()
    assert torch.allclose(step(tiny, longer, mask), expected, atol=1e-5)


def test_crop_into_the_prompt(tiny: Tiny) -> None:
    cache, inputs, _ = prefill(tiny, Drop((0, 3)))
    total = cache.get_seq_length()
    for length in range(total - 1, 0, -7):
        shorter = copy.deepcopy(cache)
        shorter.crop(length - total)
        assert shorter.get_seq_length() == length
        for number, kept in enumerate(shorter.kept):
            assert kept is not None
            assert kept.index.max() < length
            assert kept.index.shape[1] == shorter.layers[number].keys.shape[2]
            for row in range(len(ROWS)):
                wanted = cache.kept[number].index[row]
                assert torch.equal(kept.index[row][kept.index[row] >= 0], wanted[(wanted >= 0) & (wanted < length)])
    mask = inputs["attention_mask"][:, :length]
    assert torch.isfinite(step(tiny, shorter, mask)).all()


def test_select_repeat_and_reorder_rows(tiny: Tiny) -> None:
    cache, inputs, _ = prefill(tiny, Drop((0, 3)))
    mask = inputs["attention_mask"]
    expected = step(tiny, copy.deepcopy(cache), mask)
    order = torch.tensor([2, 0, 1])
    reordered = copy.deepcopy(cache)
    reordered.reorder_cache(order)
    assert torch.allclose(step(tiny, reordered, mask[order]), expected[order], atol=1e-5)
    selected = copy.deepcopy(cache)
    selected.batch_select_indices(torch.tensor([1]))
    assert torch.allclose(step(tiny, selected, mask[1:2]), expected[1:2], atol=1e-5)
    repeated = copy.deepcopy(cache)
    repeated.batch_repeat_interleave(2)
    wide = step(tiny, repeated, mask.repeat_interleave(2, 0))
    assert torch.allclose(wide, expected.repeat_interleave(2, 0), atol=1e-5)


def test_deep_copies_are_independent(tiny: Tiny) -> None:
    cache, inputs, _ = prefill(tiny, Drop((0, 3)))
    copied = copy.deepcopy(cache)
    step(tiny, copied, inputs["attention_mask"])
    assert copied.get_seq_length() == cache.get_seq_length() + 1


def test_crop_refuses_nonsense(tiny: Tiny) -> None:
    cache, _, _ = prefill(tiny, Drop((0,)))
    with pytest.raises(CacheStateError):
        cache.crop(3)
    with pytest.raises(CacheStateError):
        cache.crop(-1000)


def test_reset_makes_a_fresh_cache(tiny: Tiny) -> None:
    cache, _, _ = prefill(tiny, Drop((0,)))
    cache.reset()
    assert cache.get_seq_length() == 0
    assert not cache.is_pruned


@pytest.mark.parametrize("kind", ["static", "offloaded", "sliding", "quantised"])
def test_caches_that_cannot_shrink_are_refused(tiny: Tiny, kind: str) -> None:
    config = tiny.model.config.get_text_config()
    inputs = tiny.batch([[3, (4, 4), 5]])
    if kind == "static":
        cache: Any = StaticCache(config=config, max_cache_len=64)
    elif kind == "quantised":
        cache = QuantizedCache.__new__(QuantizedCache)  # its backends are not installed
        cache.__dict__ |= DynamicCache(config=config).__dict__
    elif kind == "offloaded":
        cache = DynamicCache(config=config)
        cache.offloading = True
    else:
        from transformers.cache_utils import DynamicSlidingWindowLayer

        cache = DynamicCache(config=config)
        cache.layers[0] = DynamicSlidingWindowLayer(sliding_window=8)
    with foveate.prune(tiny.model, Drop((0,))), pytest.raises(UnsupportedCacheError, match="DynamicCache|dynamic|full"):
        tiny.model(**inputs, past_key_values=cache)


def test_generate_with_a_static_cache_is_refused(tiny: Tiny) -> None:
    inputs = tiny.batch([[3, (4, 4), 5]])
    with foveate.prune(tiny.model, Drop((0,))), pytest.raises(UnsupportedCacheError):
        tiny.model.generate(**inputs, max_new_tokens=2, cache_implementation="static")
