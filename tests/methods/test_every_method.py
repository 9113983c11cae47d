"""What holds for every method of the registry, on views of plain tensors."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from foveate import Keep, View
from foveate.core.method import Method
from foveate.core.tower_method import TowerMethod
from foveate.core.view import ModelInfo
from foveate.errors import ConfigurationError
from foveate.methods import Compose, FasterVLM, FastV, registry
from foveate.methods.dart import DART
from tests.methods.views import LLAVA, chosen

SMALL = ModelInfo("llava", 6, 4, True, 2)
TOWER = [name for name, kind in registry().items() if issubclass(kind, TowerMethod)]  # test_tower_methods.py
NAMES = [  # glimpse_prune reads a probe, which plain tensors cannot give
    name for name in registry() if name != "glimpse_prune" and name not in TOWER
]


def configured(name: str, keep: Any, **more: Any) -> Method:
    if name == "compose":
        return Compose(FasterVLM(), FastV(), keep=keep, **more)
    return registry()[name](keep=keep, **more)


class Tensors:
    """Everything that a method may read of an image of these frames, rows and columns."""

    def __init__(self, method: Method, info: ModelInfo, grid: tuple[int, int, int], seed: int = 0) -> None:
        self.method, self.info, self.grid, self.memo = method, info, grid, {}
        n, random = grid[0] * grid[1] * grid[2], torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random)

        self.taps = {tap: draw(n).exp() if tap.kind == "received" else draw(n, 12) for tap in method.taps(info)}
        self.hidden, self.text, self.keys, self.text_keys = draw(n, 8), draw(5, 8), draw(2, n, 4), draw(2, 5, 4)
        self.attention = draw(2, 5, n).exp()
        self.alive = torch.arange(n)

    def view(self, layer: int) -> View:
        reads = {stage.layer: stage.reads for stage in self.method.stages(self.info)}[layer]
        inside = {} if reads == "nothing" else {"keys": self.keys[:, self.alive], "text_keys": self.text_keys}
        if reads == "attention":
            inside["attention"] = self.attention[:, :, self.alive]
        return View.of(
            self.hidden[self.alive], text=self.text, grid=self.grid, taps=self.taps, index=self.alive, info=self.info,
            layer=layer, memo=self.memo, **inside,
        )  # fmt: skip

    def run(self) -> list[int]:
        """Tokens alive after each stage, each choice checked."""
        numbers = []
        for stage in self.method.stages(self.info):
            found = chosen(self.method, self.view(stage.layer))
            self.alive = self.alive[found.index]
            numbers.append(len(self.alive))
        return numbers


def average(method: Method, info: ModelInfo, alive: list[int], n: int) -> float:
    bounds = [0, *(stage.layer for stage in method.stages(info)), info.layers]
    spans = [end - start for start, end in itertools.pairwise(bounds)]
    return sum(a * span for a, span in zip([n, *alive], spans, strict=True)) / info.layers


@pytest.mark.parametrize("keep", [1 / 3, 0.5, 0.9])
@pytest.mark.parametrize("name", NAMES)
def test_keep_is_the_average_and_only_what_is_declared_is_read(name: str, keep: float) -> None:
    for info, grid in ((LLAVA, (1, 24, 24)), (SMALL, (2, 10, 12))):
        method, n = configured(name, keep), grid[0] * grid[1] * grid[2]
        short = 0.1 if name == "downsample" else 0.02  # whole rows and columns
        found = average(method, info, Tensors(method, info, grid).run(), n)
        assert (
            (keep - short) * n <= found <= keep * n + (2 if name.startswith("vitcop") else 1e-6)
        )  # which rounds to nearest


@pytest.mark.parametrize("name", NAMES)
def test_a_number_of_tokens_is_the_same_budget_as_its_share(name: str) -> None:
    for grid in ((1, 24, 24), (1, 15, 18)):
        n = grid[1] * grid[2]
        wanted = n // 2
        by_number, by_share = configured(name, wanted), configured(name, wanted / n)
        a, b = Tensors(by_number, LLAVA, grid), Tensors(by_share, LLAVA, grid)
        assert a.run() == b.run()
        assert torch.equal(a.alive, b.alive)
        assert configured(name, Keep(count=wanted)).parameters() == by_number.parameters()


@pytest.mark.parametrize("name", NAMES)
def test_keeping_everything_and_keeping_one_token_are_not_the_same(name: str) -> None:
    assert not configured(name, 1.0).prunes
    assert configured(name, 1).prunes
    assert configured(name, 1) != configured(name, 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_features_that_are_not_numbers_give_a_choice_all_the_same(name: str) -> None:
    """Distinct and as many as asked: `chosen` checks it."""
    for bad in (float("nan"), float("inf")):
        method = configured(name, 0.5)
        whole, some = Tensors(method, LLAVA, (1, 10, 12)), Tensors(method, LLAVA, (1, 10, 12))
        for tensor in (some.hidden, some.text, some.keys, some.attention, *some.taps.values()):
            tensor[..., ::5] = bad
        for tensor in (some.hidden, *some.taps.values()):
            tensor[::7] = bad
        assert some.run() == whole.run()


@pytest.mark.parametrize("name", list(registry()))
def test_positions_may_be_renumbered_for_every_method(name: str) -> None:
    kind = registry()[name]
    (field,) = [field for field in dataclasses.fields(kind) if field.name == "positions"]
    assert field.kw_only or name == "compose"
    if name in ("glimpse_prune", "pixel_prune"):  # these take no keep
        return
    assert configured(name, 0.5).decode_from_cache is False
    renumbered = configured(name, 0.5, positions="contiguous")
    assert renumbered.decode_from_cache
    assert renumbered.parameters()["positions"] == "contiguous"
    with pytest.raises(ConfigurationError, match="positions"):
        configured(name, 0.5, positions="shuffled")


def test_a_budget_over_a_prompt_is_refused_where_a_grid_is_needed() -> None:
    for name in ("hiprune", "vscan", "downsample", "vitcop"):
        with pytest.raises(ConfigurationError, match="grid of one image"):
            configured(name, Keep(ratio=0.5, per="prompt"))
    assert DART(keep=Keep(ratio=0.5, per="prompt")).per == "prompt"
