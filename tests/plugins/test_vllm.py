"""What a vLLM server is told and promised, without vLLM: settings, refusals, and how many tokens stay."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.core.budget import Keep
from foveate.core.grid import Grid
from foveate.errors import ConfigurationError, FoveateError, InputError
from foveate.families.layout import ImageShape
from foveate.methods import make, registry
from foveate.plugins.vllm.carrying import digits, numbers
from foveate.plugins.vllm.images import Images
from foveate.plugins.vllm.plan import PruningPlan
from foveate.plugins.vllm.settings import KEEP, SALT, Settings
from foveate.specs.tuned import Tuned
from recipes.methods_table import number, reads, seam
from tests.tiny import FAMILIES, make_tiny

FAMILY_NAMES = sorted(FAMILIES)
FIT = [
    name
    for name, kind in registry().items()
    if seam(kind) == "0" and "text" not in reads(kind) and number(kind) != "adaptive"
]
"""Methods that act before the language model only, read no text and can keep a fixed number."""


@cache
def images(family: str) -> Images:
    return Images.of(make_tiny(family).model.config)


def plan(family: str, **settings: Any) -> PruningPlan:
    return PruningPlan(Settings.of(settings), images(family))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_method_that_fits_and_no_other(family: str) -> None:
    assert len(FIT) >= 10
    for name in FIT:
        plan(family, method=name, keep=0.4)
    for name in set(registry()) - set(FIT):
        with pytest.raises(FoveateError, match=f"(?i){name}"):
            plan(family, method=name, keep=0.4)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"method": "vitcop"}, "vitcop selects inside the language model"),
        ({"method": "cdpruner"}, "cdpruner reads more than the image"),
        ({"method": "tower_filter"}, "tower_filter drops tokens inside the vision tower"),
        ({"method": "prumerge"}, "prumerge decides by what it sees"),
        ({"method": "none"}, "prunes nothing"),
        ({"method": "nonesuch"}, "no method 'nonesuch'"),
        ({"method": "visionzip", "keep": 0.0}, "must lie in"),
        ({"method": "visionzip", "keep": {"threshold": 0.5}}, "must be a ratio"),
        ({"method": "visionzip", "keep_range": [0.5, 0.1]}, "keep_range"),
        ({"method": "visionzip", "keep_range": 3}, "keep_range"),
        ({"method": "visionzip", "keep_range": [0.1, 10**400]}, "must be two shares"),
        ({"method": "visionzip", "keep_range": [float("nan"), 1]}, "must be two shares"),
        ({"method": "visionzip", "keep_range": [0, 0]}, "must be two shares"),
        ({"method": "visionzip", "keep": 0.8, "keep_range": [0.1, 0.5]}, "keep=0.8, .* is outside keep_range"),
        ({"method": "visionzip", "keep": 0.05, "keep_range": [0.1, 0.5]}, "keep=0.05, .* is outside keep_range"),
        ({"method": "visionzip", "keep": 200, "keep_range": [0.1, 0.5]}, "give keep as a share"),
        ({"method": "visionzip", "keep": float("nan")}, "must lie in"),
        ({"method": "visionzip", "name": "x"}, "name is no parameter"),
        ({"method": "visionzip", "model": "x"}, "model is no parameter"),
        ({"method": "random", "seed": "x"}, "seed=x must be a whole number"),
        ({"method": "random", "seed": 10**400}, "seed=1000.* must be a whole number"),
        ({"method": "visionzip + fastv"}, "selects inside the language model"),
        ({"method": "/nowhere/foveate.json"}, "Cannot read /nowhere/foveate.json"),
        ({"method": "visionzip", "spare": 1}, "no parameter spare"),
        ({"method": "visionzip", "positions": "index"}, "positions='index'"),
        ({"keep": 0.5}, "must be an object"),
    ],
)
def test_refused_at_start(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(FoveateError, match=reason):
        plan("qwen2_5_vl", **given)


def test_positions_of_several_axes_cannot_be_renumbered() -> None:
    plan("llava", method="visionzip", positions="contiguous")
    with pytest.raises(ConfigurationError, match="positions='contiguous'"):
        plan("qwen2_5_vl", method="visionzip", positions="contiguous")
    with pytest.raises(ConfigurationError, match="proportional"):
        plan("llava", method="visionzip", proportional=True)


@pytest.mark.parametrize(
    ("keep", "reason"),
    [
        (Keep(ratio=0.5, per="prompt"), "one budget for all images"),
        (Keep(threshold=0.5), "fastervlm decides by what it"),
    ],
)
def test_budgets_that_only_python_can_give(keep: Keep, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON has no words for them today."""
    monkeypatch.setattr("foveate.plugins.vllm.settings.choose_method", lambda name, **_: make(name, keep=keep))
    with pytest.raises(ConfigurationError, match=reason):
        Settings.of({"method": "fastervlm"})


def test_a_tuned_file(tmp_path: Path) -> None:
    path = tmp_path / "foveate.json"
    path.write_text(Tuned("divprune", {"keep": 0.3}).to_json())
    assert str(Settings.of({"method": str(path)}).method) == "divprune(keep=0.3)"
    with pytest.raises(ConfigurationError, match="says what to keep"):
        Settings.of({"method": str(path), "keep": 0.5})
    path.write_text(Tuned("vitcop", {"keep": 0.3}).to_json())
    with pytest.raises(ConfigurationError, match="inside the language model"):
        plan("llava", method=str(path))


@pytest.mark.parametrize(
    "asked",
    [
        {"size": {"longest_edge": 10**9}}, {"do_resize": False}, {SALT: "x"}, {KEEP: 0.5, "min_pixels": 1},
        {KEEP: True}, {KEEP: "0.5"}, {KEEP: 0}, {KEEP: -0.1}, {KEEP: 1.01}, {KEEP: float("nan")}, {KEEP: 0.05},
        {KEEP: 0.9}, {KEEP: [0.5]}, {KEEP: [0.1, 0.5]}, {KEEP: 10**400}, {KEEP: float("inf")}, {KEEP: {"0": 0.5}},
        {KEEP: "nan"}, {1: 2, "size": 3},
    ],
)  # fmt: skip
def test_one_request_may_ask_for_its_share_only(asked: dict[str, object]) -> None:
    server = Settings.of({"method": "divprune", "keep": 0.2, "keep_range": [0.1, 0.5]})
    with pytest.raises(InputError, match=f"{KEEP}|cannot be set per request") as refused:
        server.asked(asked)
    assert len(str(refused.value)) < 200
    assert server.asked({}) is server.asked({KEEP: 0.2}) is None
    assert server.asked({KEEP: 0.5}) == 0.5


def test_salts_tell_settings_apart() -> None:
    several: list[dict[str, Any]] = [
        {"method": "visionzip"}, {"method": "divprune"}, {"method": "visionzip", "keep": 0.25},
        {"method": "visionzip", "keep": 1}, {"method": "visionzip", "keep": 1.0}, {"method": "random", "seed": 1},
        {"method": "random", "seed": 2},
    ]  # fmt: skip
    salts = [Settings.of(one).salt(None) for one in several] + [Settings.of(several[0]).salt(0.3)]
    assert len(set(salts)) == len(salts)
    assert Settings.of(several[0]).salt(0.25) == Settings.of(several[2]).salt(None)


grids = st.builds(lambda h, w: Grid(1, h, w), st.integers(1, 12), st.integers(1, 12))
shares = st.floats(0.02, 1.0)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(FIT), st.sampled_from(FAMILY_NAMES), grids, shares, st.none() | shares, st.integers(0, 5))
def test_as_many_stay_as_were_promised(
    name: str, family: str, grid: Grid, keep: float, asked: float | None, newlines: int
) -> None:
    """vLLM makes room before the image is encoded."""
    made = plan(family, method=name, keep=keep)
    shape = ImageShape((grid,), tuple(range(grid.size, grid.size + newlines)))
    random = torch.Generator().manual_seed(grid.size)
    heads = 2 * max(1, made.info.tower_heads)
    taps = {
        tap: torch.rand(grid.size, *(() if tap.kind == "received" else (heads,)), generator=random)
        for tap in made.settings.method.taps(made.info)
    }
    found = made.select(shape, torch.randn(shape.size, 8, generator=random), taps, asked)
    assert len(found) == made.kept(shape, asked)
    assert set(shape.fixed) <= set(found.index.tolist())


@given(st.lists(st.lists(st.integers(0, 128**2 - 1), min_size=3, max_size=3), min_size=1, max_size=8))
def test_positions_pass_through_columns_of_bfloat16(places: list[list[int]]) -> None:
    given = torch.tensor(places)
    assert numbers(digits(given).to(torch.bfloat16)).tolist() == places


def test_plain_json() -> None:
    """As `--hf-overrides` brings it."""
    given = json.loads('{"method": "visionzip", "keep": "1/9", "keep_range": [0.1, 1.0]}')
    assert Settings.of(given).method.budget.ratio == pytest.approx(1 / 9)
