"""Greedy subset selection against brute force."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foveate.bench.operations import counting
from foveate.maths import diversity
from foveate.maths.diversity import greedy_map, max_min


def features(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def cosines(x: Tensor) -> Tensor:
    x = torch.nn.functional.normalize(x.double(), dim=1)
    return x @ x.T


@pytest.fixture(params=[10**9, 0], ids=["matrix at once", "row by row"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diversity, "GRAM_BYTES", request.param)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("seed", range(4))
def test_greedy_map_multiplies_the_determinant_most_at_every_step(seed: int) -> None:
    x, quality = features(24, 30, seed), torch.rand(24, generator=torch.Generator().manual_seed(seed))
    kernel = quality.double()[:, None] * cosines(x) * quality.double()[None]
    chosen: list[int] = []
    for _ in range(18):
        rest = [i for i in range(24) if i not in chosen]
        chosen.append(max(rest, key=lambda i: float(torch.linalg.det(kernel[[*chosen, i]][:, [*chosen, i]]))))
    assert greedy_map(x, quality, 18).tolist() == chosen


def test_greedy_map_begins_anew_when_the_rank_is_exhausted() -> None:
    x, quality = features(40, 6, 0), torch.rand(40, generator=torch.Generator().manual_seed(0))
    chosen = greedy_map(x, quality, 20).tolist()
    assert len(set(chosen)) == 20
    for start in (0, 6, 12, 18):
        rest = [i for i in range(40) if i not in chosen[:start]]
        again = greedy_map(x[rest], quality[rest], min(6, 20 - start))
        assert [rest[i] for i in again] == chosen[start : start + 6]


@pytest.mark.parametrize("seed", range(4))
def test_max_min_is_the_plain_greedy_algorithm(seed: int) -> None:
    x = features(40, 6, seed)
    distance = 1 - cosines(x)
    alone = distance + 10 * torch.eye(40)
    chosen = [int(alone.min(0).values.argmax())]
    while len(chosen) < 20:
        rest = [i for i in range(40) if i not in chosen]
        chosen.append(max(rest, key=lambda i: float(distance[i, chosen].min())))
    assert max_min(x, 20).tolist() == chosen


def one_by_one(similarity: Tensor, start: list[int], count: int) -> list[int]:
    """The plain greedy algorithm; of equals the first."""
    chosen, nearest = list(start), similarity[:, start].amax(1)
    nearest[start] = float("inf")
    while len(chosen) < count:
        token = int((nearest == nearest.amin()).nonzero()[0])
        chosen.append(token)
        nearest = torch.maximum(nearest, similarity[:, token])
        nearest[token] = float("inf")
    return chosen


def alone(similarity: Tensor) -> list[int]:
    """The token whose nearest neighbour is farthest; of equals the first."""
    nearest = similarity.clone().fill_diagonal_(-float("inf")).amax(1)
    return [int((nearest == nearest.amin()).nonzero()[0])]


def bookish(patch: pytest.MonkeyPatch, **sizes: int) -> None:
    """Everything that happens with thousands of tokens happens with a few."""
    for name, size in ({"FEW": 7, "FIRST": 4, "CANDIDATES": 4, "PARTS": 3} | sizes).items():
        patch.setattr(diversity, name, size)


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 10**6), st.integers(16, 90), st.integers(1, 16), st.integers(1, 9), st.booleans(), st.data())
def test_rounds_choose_what_choosing_one_by_one_does(
    seed: int, n: int, candidates: int, first: int, bounds: bool, data: st.DataObject
) -> None:
    """Corners of a cube: all cosines are exact, and many are equal."""
    x = torch.randint(0, 2, (n, 4), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1
    start = data.draw(st.none() | st.lists(st.integers(0, n - 1), min_size=1, max_size=9, unique=True))
    count = data.draw(st.integers(len(start or [0]), n))
    with pytest.MonkeyPatch.context() as patch:
        bookish(patch, CANDIDATES=candidates, FIRST=first, FEW=7 if bounds else 1024)
        found = max_min(x, count, None if start is None else torch.tensor(start)).tolist()
    assert found == one_by_one(x @ x.T / 4, alone(x @ x.T / 4) if start is None else start, count)


@pytest.mark.parametrize(("n", "d"), [(700, 24), (1600, 24), (3000, 48)])
def test_rounds_of_many_tokens_are_the_plain_algorithm(n: int, d: int) -> None:
    x = features(n, d, 3)
    start = [5, 600, *range(900, min(n, 1400))]
    assert max_min(x, n // 2, torch.tensor(start)).tolist() == one_by_one(cosines(x), start, n // 2)
    assert max_min(x, n // 3).tolist() == one_by_one(cosines(x), alone(cosines(x)), n // 3)


@pytest.mark.parametrize("bounds", [False, True])
def test_rows_that_are_not_finite_are_chosen_once_and_resemble_nothing(
    bounds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bounds:
        bookish(monkeypatch, OUTLINE=4)
    x = features(40, 20, 0).abs()
    x[3], x[17, 5] = float("nan"), float("inf")
    for start, rough in ((None, False), (torch.tensor([5]), False), (torch.tensor([5]), True)):
        found = max_min(x, 40, start, rough=rough).tolist()
        assert sorted(found) == list(range(40))
        assert {3, 17} <= set(found[:3])


def test_thousands_of_tokens_are_waited_for_a_few_times() -> None:
    with counting() as counts:
        max_min(features(2304, 64, 0), 256, torch.arange(30))
        assert counts.waits <= 5
        max_min(features(2304, 64, 0), 691, torch.arange(172))
    assert counts.waits <= 5 + 30


def test_most_pairs_of_many_tokens_are_never_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    n, count, compared = 4096, 1228, 0
    plain = diversity.coverage

    def spy(x: Tensor, chosen: Tensor, weight: Tensor | None = None) -> Tensor:
        nonlocal compared
        compared += len(x) * len(chosen)
        return plain(x, chosen, weight)

    monkeypatch.setattr(diversity, "coverage", spy)
    max_min(features(n, 16, 0), count, torch.arange(10))
    assert compared < 0.6 * n * count


def low_rank(n: int, d: int, rank: int, noise: float) -> Tensor:
    return features(n, rank, 0) @ features(rank, d, 1) + noise * features(n, d, 2)


def test_a_rough_choice_leaves_no_token_much_farther_than_the_one_it_takes() -> None:
    """Similarities are off by at most what of two tokens lies outside the 64 dimensions."""
    x, start = low_rank(600, 320, 40, 1.0), [0, 7]
    similarity = cosines(x).float()
    found = max_min(x, 200, torch.tensor(start), rough=True).tolist()
    assert found != max_min(x, 200, torch.tensor(start)).tolist()
    outside = 1 - diversity.outline(x).square().sum(1).amin()
    assert outside < 0.2
    nearest = similarity[:, start].amax(1)
    for step, token in enumerate(found[2:], 2):
        left = nearest.index_fill(0, torch.tensor(found[:step]), float("inf"))
        assert left[token] <= left.amin() + 2 * outside
        nearest = torch.maximum(nearest, similarity[:, token])


@pytest.mark.parametrize(("n", "d"), [(300, 320), (600, 192), (1200, 1100)], ids=["few", "small", "wide"])
def test_a_choice_is_rough_only_for_many_tokens_of_a_narrow_model(n: int, d: int) -> None:
    x = low_rank(n, d, 40, 1.0)
    assert max_min(x, 60, torch.tensor([0]), rough=True).tolist() == max_min(x, 60, torch.tensor([0])).tolist()


def test_what_64_dimensions_hold_is_chosen_exactly() -> None:
    x = low_rank(600, 320, 30, 0.0)
    assert max_min(x, 100, torch.tensor([0]), rough=True).tolist() == max_min(x, 100, torch.tensor([0])).tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(16, 90), st.integers(1, 16), st.booleans(), st.data())
def test_weighted_rounds_choose_what_choosing_one_by_one_does(
    seed: int, n: int, candidates: int, bounds: bool, data: st.DataObject
) -> None:
    """Weights are powers of two, so that all products are exact."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 2, (n, 4), generator=draw) * 2.0 - 1
    weight = 2.0 ** torch.randint(-3, 4, (n,), generator=draw)
    start = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=3, unique=True))
    count = data.draw(st.integers(len(start), n))
    with pytest.MonkeyPatch.context() as patch:
        bookish(patch, CANDIDATES=candidates, FEW=7 if bounds else 1024)
        found = max_min(x, count, torch.tensor(start), weight).tolist()
    assert found == one_by_one((x @ x.T / 4 - 1) * weight[:, None], start, count)


@pytest.mark.parametrize("n", [40, 1100])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_weights_that_are_none_count_as_little_and_every_token_is_taken_once(n: int, bad: float) -> None:
    x, weight = features(n, 16, 0), torch.rand(n, generator=torch.Generator().manual_seed(0))
    for places in ([5], list(range(n))):
        weight[places] = bad
        found = max_min(x, n // 2, torch.tensor([3]), weight).tolist()
        assert len(set(found)) == n // 2


def test_counts_and_starts_at_the_edges() -> None:
    x = features(20, 8, 0)
    assert max_min(x, 0).tolist() == []
    assert sorted(max_min(x, 99).tolist()) == list(range(20))
    assert max_min(x, 2, torch.tensor([4, 1, 3])).tolist() == [4, 1]
    assert max_min(x, 5, torch.tensor([], dtype=torch.long)).tolist() == max_min(x, 5).tolist()
    assert max_min(x[:0], 3).tolist() == []


def test_equal_weights_change_nothing() -> None:
    x, start = features(300, 24, 3), torch.tensor([5])
    assert max_min(x, 150, start, torch.full((300,), 2.0)).tolist() == max_min(x, 150, start).tolist()


@pytest.mark.parametrize(("n", "count"), [(8, 3), (10, 4), (12, 5)])
def test_max_min_is_within_a_factor_of_two_of_the_best_subset(n: int, count: int) -> None:
    for seed in range(5):
        x = features(n, 4, seed)
        # the chord is a metric and grows with the cosine distance, so the greedy choice is the same
        chord = (2 - 2 * cosines(x)).clamp(min=0).sqrt()

        def spread(subset: list[int], chord: Tensor = chord) -> float:
            return min(float(chord[a, b]) for a, b in itertools.combinations(subset, 2))

        best = max(spread(list(subset)) for subset in itertools.combinations(range(n), count))
        assert spread(max_min(x, count).tolist()) >= best / 2 - 1e-6


def test_duplicates_never_come_twice() -> None:
    x = features(4, 8, 0).repeat(3, 1)
    assert len(set(max_min(x, 10).tolist())) == 10
    assert len(set(greedy_map(x, torch.ones(12), 10).tolist())) == 10


MEASURE = """
import resource, torch
from foveate.maths.diversity import greedy_map, max_min
torch.set_num_threads(1)
x, quality = torch.randn(16384, 64), torch.rand(16384)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
assert len(set(max_min(x, 16384 // 9).tolist())) == 16384 // 9
assert len(set(greedy_map(x, quality, 16384 // 9).tolist())) == 16384 // 9
print((peak() - before) * 1024)
"""


def test_sixteen_thousand_tokens_fit_into_a_gigabyte() -> None:
    if sys.platform != "linux":
        pytest.skip("peak memory is read in kilobytes, as Linux gives it")
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, timeout=300, check=True)
    assert int(done.stdout) < 1024**3
