"""Operation counts against torch's counter: two families, tiny and mid-size, unpruned and pruned; presets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import foveate
from foveate.bench import flops
from foveate.bench.own_work import own_flops
from foveate.errors import ConfigurationError, UnsupportedModelError
from foveate.families import adapt, presets, prompts
from foveate.families.geometry import Geometry
from foveate.methods import make
from tests.families.tiny import build
from tests.families.types import TABLE
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
    family = adapt(model)
    vision = flops.vision_flops(family, inputs, trace.last)
    expected = flops.count(Geometry.of(family), trace.last, NEW, vision)
    if method is None or not method.taps(family.info):  # reading a tap costs a little inside the tower
        towers = ("CLIPVisionModel", "LlavaMultiModalProjector", "Qwen2_5_VisionTransformerPretrainedModel")
        assert vision == pytest.approx(sum(found.get(name, 0) for name in towers), rel=0.01)
    own = own_flops(model, inputs, method)  # what the method itself computes is in the counter's figure
    assert expected.total == pytest.approx(counter.get_total_flops() - own, rel=0.01)
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


def test_pruning_lowers_prefill_and_decoding() -> None:
    tiny = make_tiny("qwen2_5_vl")
    geometry, counts = Geometry.of(adapt(tiny.model)), []
    for keep in (1.0, 0.25):
        with torch.no_grad(), foveate.prune(tiny.model, make("random", keep=keep)) as trace:
            tiny.model.generate(**tiny.batch(TINY["one image"]), max_new_tokens=NEW)
        counts.append(flops.count(geometry, trace.last, NEW, 0))
    full, less = counts
    assert less.head == full.head
    assert less.prefill < full.prefill
    assert less.decode < full.decode


SIZES = {
    "llava-1.5-7b": 7.06, "llava-1.5-13b": 13.35, "llava-next-13b": 13.35, "llava-onevision-7b": 8.03,
    "qwen2-vl-7b": 8.29, "qwen2.5-vl-3b": 3.75, "qwen2.5-vl-7b": 8.29, "qwen3-vl-8b": 8.77, "internvl3-8b": 7.94,
    "gemma3-12b": 12.19, "smolvlm-2b": 2.25,
}  # fmt: skip
"""Billions of parameters, as published with the checkpoints."""


@pytest.mark.parametrize("name", SIZES)
def test_published_geometries_have_their_published_sizes(name: str) -> None:
    model = presets.build(name, device="meta")
    parameters = {id(parameter): parameter.numel() for parameter in model.parameters()}
    assert sum(parameters.values()) / 1e9 == pytest.approx(SIZES[name], rel=0.005)


@pytest.mark.parametrize("name", [name for name in presets.PRESETS if not name.startswith("mid")])
def test_a_preset_runs_with_a_prompt_of_its_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few and narrow layers, but its own images."""
    preset = presets.PRESETS[name]
    text = {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 32, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "head_dim": 24}
    text["rope_parameters"] = dict(preset.text["rope_parameters"])
    if "mrope_section" in text["rope_parameters"]:
        text["rope_parameters"]["mrope_section"] = [4, 4, 4]
    vision = {"num_hidden_layers": 2, "depth": 2, "hidden_size": 32, "intermediate_size": 32, "embed_dim": 32}
    vision |= {"num_attention_heads": 2, "num_heads": 2, "out_hidden_size": 48, "fullatt_block_indexes": [1]}
    vision |= {"deepstack_visual_indexes": [0]}
    if preset.family == "qwen2_vl":
        vision["hidden_size"] = 48
    vision = {key: value for key, value in vision.items() if key in preset.vision}
    monkeypatch.setitem(presets.PRESETS, name, replace(preset, text=preset.text | text, vision=preset.vision | vision))
    model = presets.build(name)
    inputs = prompts.random_prompt(model, preset.tokens)
    with torch.no_grad(), foveate.prune(model, make("random", keep=0.5)) as trace:
        model.generate(**inputs, max_new_tokens=1)
    newlines = sum(len(group.fixed) for group in trace.last.groups)
    assert trace.last.visual_tokens == preset.tokens
    assert trace.last.alive_per_layer()[-1] == (preset.tokens - newlines) // 2 + newlines


def test_bad_input() -> None:
    with pytest.raises(ConfigurationError, match="llava-1.5-7b"):
        presets.build("llava-9")
    with pytest.raises(ConfigurationError, match="square"):
        presets.build("mid-llava", tokens=500)
    with pytest.raises(ConfigurationError, match="no sensible grid"):
        prompts.nearly_square(577)
    with pytest.raises(ConfigurationError, match="16 visual tokens"):
        prompts.random_prompt(make_tiny("llava").model, 25)
    with pytest.raises(
        ConfigurationError, match="fills its tiles has 1752, 1776, 2328, 2376, 2928 visual tokens, not 99"
    ):
        prompts.random_prompt(presets.build("llava-next-13b", device="meta"), 99)
    with pytest.raises(ConfigurationError, match="a multiple of 256 visual tokens"):
        prompts.random_prompt(presets.build("internvl3-8b", device="meta"), 99)
    with pytest.raises(ConfigurationError, match="not known"):
        prompts.random_prompt(build("aria"), 6)
    assert "ernie4_5_vl_moe" in TABLE
    with pytest.raises(UnsupportedModelError, match="experts of different sizes"):
        Geometry.of(adapt(build("ernie4_5_vl_moe")))
