"""Analytic operation counts against torch's counter: both families, tiny and mid-size, unpruned and pruned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import foveate
from foveate.bench import flops
from foveate.core.grid import Grid
from foveate.errors import ConfigurationError, UnsupportedModelError
from foveate.families import adapt, presets, prompts
from foveate.families.geometry import Geometry
from foveate.methods import make
from tests.tiny import make_tiny
from tests.tower_reference import DropInTower

NEW = 4
METHODS = {
    "unpruned": None,
    "random": make("random", keep=0.25),
    "vitcop": make("vitcop", keep=1 / 3),
    "in the tower": DropInTower((0, 2), 0.6, 1),
}
TINY = {"one image": [[9, (6, 6), 20]], "two rows": [[9, (4, 6), 20, (4, 4), 3], [9, (4, 6), 20, (4, 4), 3]]}


def check(model, inputs, method) -> None:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), foveate.prune(model, method) as trace, counter:
        model.generate(**inputs, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    found = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    expected = flops.count(Geometry.of(model.config), trace.last, NEW)
    if method is None or not method.taps(adapt(model).info):  # reading a tap costs a little inside the tower
        towers = ("CLIPVisionModel", "LlavaMultiModalProjector", "Qwen2_5_VisionTransformerPretrainedModel")
        assert expected.vision == pytest.approx(sum(found.get(name, 0) for name in towers), rel=0.01)
    whole = type(model).__name__
    assert expected.prefill + expected.decode + expected.head == pytest.approx(found[whole], rel=0.01)
    assert expected.total == expected.vision + expected.prefill + expected.head + expected.decode


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", TINY)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_tiny_models_against_the_counter(family: str, rows: str, method: str) -> None:
    tiny = make_tiny(family, "eager")  # torch does not count the fused attention of CPUs
    check(tiny.model, tiny.batch(TINY[rows]), METHODS[method])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["mid-llava", "mid-qwen2.5-vl"])
def test_mid_size_models_against_the_counter(name: str, method: str) -> None:
    model = presets.build(name, tokens=144, attention="eager")
    check(model, prompts.random_prompt(model, 144), METHODS[method])


def test_windows_at_the_edge_are_smaller() -> None:
    vision = Geometry.of(make_tiny("qwen2_5_vl").model.config).vision
    grid = Grid(1, 5, 6)
    _, whole, windows = flops._block(replace(vision, window=4, merge=1), grid, torch.arange(grid.size))
    assert whole // (4 * vision.width) == 30**2
    assert windows // (4 * vision.width) == sum(n**2 for n in (2, 4, 8, 16))


def test_pruning_lowers_prefill_and_decoding_but_not_the_tower() -> None:
    tiny = make_tiny("qwen2_5_vl")
    counts = []
    for keep in (1.0, 0.25):
        with torch.no_grad(), foveate.prune(tiny.model, make("random", keep=keep)) as trace:
            tiny.model.generate(**tiny.batch(TINY["one image"]), max_new_tokens=NEW)
        counts.append(flops.count(Geometry.of(tiny.model.config), trace.last, NEW))
    full, less = counts
    assert less.vision == full.vision
    assert less.head == full.head
    assert less.prefill < full.prefill
    assert less.decode < full.decode


def test_published_geometries_have_their_published_sizes() -> None:
    """Parameters of the language model's layers and head, in billions, from the numbers alone."""
    expected = {"llava-1.5-7b": 6.6, "llava-1.5-13b": 12.9, "qwen2.5-vl-3b": 3.1, "qwen2.5-vl-7b": 7.1}
    for name, billions in expected.items():
        preset = presets.PRESETS[name]
        text = Geometry.of(presets._config(preset, preset.tokens)).text
        # two operations per parameter and token
        parameters = (text.layers * flops.linear_flops(text) + flops.head_flops(text)) / 2
        assert parameters / 1e9 == pytest.approx(billions, abs=0.1), name


def test_bad_input() -> None:
    with pytest.raises(ConfigurationError, match="llava-1.5-7b"):
        presets.build("llava-9")
    with pytest.raises(ConfigurationError, match="square"):
        presets.build("mid-llava", tokens=500)
    with pytest.raises(ConfigurationError, match="no sensible grid"):
        prompts.nearly_square(577)
    with pytest.raises(ConfigurationError, match="16 visual tokens"):
        prompts.random_prompt(make_tiny("llava").model, 25)
    config = make_tiny("llava").model.config
    other = type("Config", (), {"model_type": "other", "get_text_config": lambda self: config.text_config})()
    with pytest.raises(UnsupportedModelError, match="no FLOPs formula for 'other'"):
        Geometry.of(other)
