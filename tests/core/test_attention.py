"""Attention received, of all queries and of a sample."""

from __future__ import annotations

import pytest
import torch

from foveate.core import attention
from foveate.core.attention import received_attention


def heads(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(3, n, 8, generator=random) * 2, torch.randn(3, n, 8, generator=random)


@pytest.mark.parametrize("chunk", [2**26, 4 * 3 * 40 * 7])
def test_every_query_is_counted_unless_told_otherwise(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "CHUNK_BYTES", chunk)
    q, k = heads(60)
    parts = [slice(0, 20), slice(20, 60)]
    expected = torch.cat([(q[:, s] @ k[:, s].transpose(1, 2) * 0.3).softmax(-1).mean(1).sum(0) for s in parts])
    torch.testing.assert_close(received_attention(q, k, 0.3, [20, 40]), expected)
    torch.testing.assert_close(received_attention(q, k, 0.3, [20, 40], max_queries=40), expected)


@pytest.mark.parametrize("limit", [1, 7, 23, 39])
def test_a_sample_is_evenly_spaced_and_as_large_as_allowed(limit: int) -> None:
    q, k = heads(60)
    asking = [20 + i * 40 // limit for i in range(limit)]
    assert len(set(asking)) == limit
    expected = (q[:, asking] @ k[:, 20:].transpose(1, 2) * 0.3).softmax(-1).mean(1).sum(0)
    torch.testing.assert_close(received_attention(q, k, 0.3, [20, 40], max_queries=limit)[20:], expected)
    assert received_attention(q, k, 0.3, [20, 40], max_queries=limit).sum().item() == pytest.approx(6, rel=1e-5)
