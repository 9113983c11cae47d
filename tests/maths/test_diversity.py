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
    chosen = list(start)
    while len(chosen) < count:
        rest = [i for i in range(len(similarity)) if i not in chosen]
        chosen.append(min(rest, key=lambda i: (float(similarity[i, chosen].max()), i)))
    return chosen


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 90), st.integers(1, 16), st.data())
def test_rounds_choose_what_choosing_one_by_one_does(seed: int, n: int, candidates: int, data: st.DataObject) -> None:
    """Corners of a cube: all cosines are exact, and many are equal."""
    x = torch.randint(0, 2, (n, 4), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1
    start = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=3, unique=True))
    count = data.draw(st.integers(len(start), n))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diversity, "CANDIDATES", candidates)
        found = max_min(x, count, torch.tensor(start)).tolist()
    assert found == one_by_one(x @ x.T / 4, start, count)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 90), st.integers(1, 16), st.data())
def test_weighted_rounds_choose_what_choosing_one_by_one_does(
    seed: int, n: int, candidates: int, data: st.DataObject
) -> None:
    """Weights are powers of two, so that all products are exact."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 2, (n, 4), generator=draw) * 2.0 - 1
    weight = 2.0 ** torch.randint(-3, 4, (n,), generator=draw)
    start = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=3, unique=True))
    count = data.draw(st.integers(len(start), n))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diversity, "CANDIDATES", candidates)
        found = max_min(x, count, torch.tensor(start), weight).tolist()
    assert found == one_by_one((x @ x.T / 4 - 1) * weight[:, None], start, count)


def test_equal_weights_change_nothing() -> None:
    x, start = features(300, 24, 3), torch.tensor([5])
    assert max_min(x, 150, start, torch.full((300,), 2.0)).tolist() == max_min(x, 150, start).tolist()


def test_rounds_of_many_tokens_are_the_plain_algorithm() -> None:
    x = features(700, 24, 3)
    start = [5, 600]
    assert max_min(x, 350, torch.tensor(start)).tolist() == one_by_one(cosines(x), start, 350)


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
