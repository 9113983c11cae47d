"""Bipartite matching, nearest-token merging, clustering and ranks against plain loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from foveate.core.selection import Selection
from foveate.maths import density, similarity
from foveate.maths.bipartite import bipartite_merge, match
from foveate.maths.density import dpc_knn
from foveate.maths.similarity import complement, merge_into, nearest, rank_within


def features(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def members(selection: Selection) -> dict[int, list[int]]:
    """Sources by the place of their target."""
    assert selection.merge is not None
    found: dict[int, list[int]] = {}
    for target, source in zip(selection.merge.entry_target.tolist(), selection.merge.source.tolist(), strict=True):
        found.setdefault(int(selection.index[target]), []).append(source)
    return {place: sorted(own) for place, own in sorted(found.items())}


def loop_merge(metric: Tensor, count: int) -> dict[int, list[int]]:
    """Bipartite soft matching with lists: (place, members), alternately candidates and partners."""
    tokens = [(i, [i]) for i in range(len(metric))]
    while len(tokens) > count:
        mean = torch.stack([metric[own].mean(0) for _, own in tokens]).double()
        mean = mean / mean.norm(dim=1, keepdim=True)
        pairs = []
        for a in range(0, len(tokens), 2):
            b = max(range(1, len(tokens), 2), key=lambda b: float(mean[a] @ mean[b]))
            pairs.append((float(mean[a] @ mean[b]), a, b))
        pairs.sort(reverse=True)
        for _, a, b in pairs[: min(len(tokens) - count, len(tokens) // 2)]:
            tokens[b][1].extend(tokens[a][1])
            tokens[a] = (-1, [])
        tokens = [token for token in tokens if token[0] >= 0]
    return {place: sorted(own) for place, own in tokens}


@pytest.mark.parametrize(("n", "count"), [(12, 9), (12, 6), (13, 5), (30, 3), (7, 1)])
def test_bipartite_merge_is_repeated_matching(n: int, count: int) -> None:
    for seed in range(3):
        metric = features(n, 8, seed)
        found = bipartite_merge(metric, count)
        assert members(found) == loop_merge(metric, count)
        x = features(n, 3, seed + 10)
        expected = torch.stack([x[own].mean(0) for own in loop_merge(metric, count).values()])
        torch.testing.assert_close(found.apply(x), expected)


def test_matching_by_hand() -> None:
    # even places 0, 2, 4 look for a partner among 1, 3: 4 equals 3, 0 is near 1, 2 is near none
    metric = torch.tensor([[1.0, 0.1], [1.0, 0.0], [-1.0, -1.0], [0.0, 1.0], [0.0, 2.0]])
    source, target = match(metric, 2)
    assert source.tolist() == [4, 0]
    assert target.tolist() == [3, 1]


def test_nearest_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = features(20, 5, 0), features(9, 5, 1)
    monkeypatch.setattr(similarity, "CHUNK_BYTES", 4 * 9 * 3)
    value, index = nearest(x, y)
    torch.testing.assert_close(value, (x @ y.T).max(1).values)
    assert torch.equal(index, (x @ y.T).argmax(1))


def test_merge_into_takes_the_mean_of_target_and_sources() -> None:
    x = torch.arange(6.0)[:, None]
    kept, receivers = torch.tensor([0, 2, 5]), torch.tensor([5, 0])
    found = merge_into(6, kept, receivers, torch.tensor([1, 3, 4]), torch.tensor([1, 0, 0]))
    assert found.apply(x).squeeze(1).tolist() == [0.5, 2.0, 4.0]  # mean(0, 1), untouched, mean(5, 3, 4)


def test_complement_and_rank_within() -> None:
    assert complement(6, torch.tensor([4, 0])).tolist() == [1, 2, 3, 5]
    score = torch.tensor([3.0, 1.0, 2.0, 9.0, 9.0])
    assert rank_within(score, torch.tensor([0, 0, 0, 2, 2]), 3).tolist() == [0, 2, 1, 0, 1]


def loop_clusters(x: Tensor, clusters: int, neighbours: int) -> tuple[list[int], dict[int, int]]:
    n = len(x)
    distance = [[float((x[i] - x[j]).double().norm() / x.shape[1] ** 0.5) for j in range(n)] for i in range(n)]
    rho = [sum(d * d for d in sorted(row)[:neighbours]) / neighbours for row in distance]  # small is dense
    score = []
    for i in range(n):
        denser = [distance[i][j] for j in range(n) if rho[j] < rho[i]]
        score.append((min(denser) if denser else max(distance[i])) * torch.tensor(-rho[i]).exp().item())
    centres = sorted(sorted(range(n), key=lambda i: -score[i])[:clusters])
    owner = {i: min(centres, key=lambda c, i=i: distance[i][c]) for i in range(n) if i not in centres}
    return centres, owner


@pytest.mark.parametrize("chunk", [64 * 1024 * 1024, 4 * 30 * 7])
def test_dpc_knn_is_the_plain_algorithm(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(density, "CHUNK_BYTES", chunk)
    for seed in range(4):
        x = features(30, 6, seed)
        centres, owner = dpc_knn(x, 5, 4)
        wanted, owners = loop_clusters(x, 5, 4)
        assert centres.tolist() == wanted
        others = complement(30, centres).tolist()
        assert {i: wanted[o] for i, o in zip(others, owner.tolist(), strict=True)} == owners
