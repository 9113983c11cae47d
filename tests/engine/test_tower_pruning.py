"""Seam 0: what is dropped inside the vision tower is as good as masked there from that block on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import foveate
from foveate.core.method import Method
from foveate.errors import ConfigurationError, InputError, MissingTapError, UnsupportedModelError
from foveate.methods import Compose, DivPrune, FastV, GlimpsePrune, ToMeTower, TowerFilter, ViTCoP
from tests.families.llava_like import LLAVA, SIGLIP, square
from tests.families.reference import close, generate, masked_logits
from tests.families.tiny import TinyType, build
from tests.families.types import TABLE
from tests.tower_reference import DropByPixels, DropFrame, DropInTower, masked_tower, steps_of

TABLE.setdefault(
    "llava_siglip",
    TinyType("llava", {**LLAVA, "vision_config": SIGLIP, "vision_feature_select_strategy": "full"}, square(16)),
)
NAMES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "llava_siglip")
ROWS = [[6, ("image", 2, 3), 5], [2, ("image", 5, 4), 4, ("image", 2, 2), 3], [4]]


def assert_masked(name: str, attention: str, method: Method, inputs: dict[str, Any]) -> foveate.Trace:
    model, entry = build(name, attention), TABLE[name]
    with foveate.prune(model, method) as trace:
        tokens, logits, _ = generate(model, inputs, 2)
    assert any(steps_of(trace.last))
    with masked_tower(model, inputs, trace.last):
        wanted = masked_logits(model, entry, inputs, trace.to_dict(), tokens)
    assert close(logits, wanted) < 2e-5
    return trace


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_is_the_stock_tower_when_nothing_is_dropped(name: str) -> None:
    model, inputs = build(name), TABLE[name].batch(ROWS)
    tokens, logits, _ = generate(model, inputs, 1)
    with foveate.prune(model, DropInTower((0,), 1.0, 0)) as trace:
        generate(model, inputs, 1)
    with masked_tower(model, inputs, trace.last):
        wanted = masked_logits(model, TABLE[name], inputs, trace.to_dict(), tokens)
    assert close(logits, wanted) < 2e-5


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    attention=st.sampled_from(["eager", "sdpa"]),
    blocks=st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True).map(sorted),
    share=st.sampled_from([0.01, 0.3, 0.5, 0.8]),
    seed=st.integers(0, 99),
)
def test_dropping_is_masking(name: str, attention: str, blocks: list[int], share: float, seed: int) -> None:
    assert_masked(name, attention, DropInTower(tuple(blocks), share, seed), TABLE[name].batch(ROWS, seed))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", NAMES)
def test_dropping_is_masking_for_every_tower(name: str, attention: str) -> None:
    for kind in (DropInTower, DropByPixels):
        assert_masked(name, attention, kind((0, 2), 0.6, 3), TABLE[name].batch(ROWS))


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_frame_of_a_clip_may_lose_everything(name: str) -> None:
    inputs = TABLE[name].batch([[3, ("video", 4, 3), 4]])
    for blocks in ((0,), (2,)):
        assert_masked(name, "sdpa", DropFrame(blocks, 0.7, 1), inputs)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
def test_later_stages_and_taps_see_the_survivors(name: str) -> None:
    inputs = TABLE[name].batch(ROWS)
    for later in (DivPrune(keep=0.3), FastV(keep=0.6)):
        trace = assert_masked(name, "sdpa", Compose(DropInTower((1,), 0.5, 0), later), inputs)
        for group, steps in zip(trace.last.groups, (g.tower for g in trace.last.groups), strict=True):
            left = set(steps[0][-1].alive.tolist())
            assert set(group.alive_at(5).tolist()) <= left == set(group.steps[0].alive.tolist())


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
def test_one_budget_over_tower_and_language_model(name: str) -> None:
    model = build(name)
    inputs = TABLE[name].batch([[6, ("image", 20, 18), 5]] if name != "llava" else [[6, ("image", 4, 4), 5]])
    tower = TowerFilter(keep=0.5, by="max_min", block=1)
    for method in (
        ViTCoP(keep=0.25, tower=tower, shallow_layer=1, deep_layer=4),
        Compose(tower, ViTCoP(keep=0.25, shallow_layer=1, deep_layer=4)),
        Compose(tower, DivPrune(), FastV(keep=0.5), keep=0.25),
    ):
        with foveate.prune(model, method) as trace:
            generate(model, inputs, 1)
        assert trace.keep_ratio == pytest.approx(0.25, abs=0.06 if name == "llava" else 0.02)
        assert trace.last.alive_per_layer()[0] <= trace.last.visual_tokens // 2


def test_a_module_that_reads_the_tower_sees_the_survivors() -> None:
    """GlimpsePrune reads blocks of the tower behind the stage, and counts the image's tokens."""
    model, inputs = build("qwen2_5_vl"), TABLE["qwen2_5_vl"].batch([[6, ("image", 6, 6), 5]])
    method = Compose(DropInTower((0,), 0.5, 0), GlimpsePrune.example(0.25, model))
    with foveate.prune(model, method) as trace:
        _, logits, _ = generate(model, inputs, 2)
    assert torch.isfinite(logits).all()
    alive = trace.last.alive_per_layer()
    assert alive[0] == 18
    assert 1 <= alive[-1] <= 9


def test_merged_tokens_weigh_as_many_as_they_stand_for() -> None:
    """Two tokens that are exact copies: merging them with proportional attention changes nothing."""
    model = build("llava")
    inputs = TABLE["llava"].batch([[4, ("image", 4, 4), 3]])
    vision = model.model.vision_tower
    with torch.no_grad():  # all patches alike: every pair is a pair of copies
        positions = vision.embeddings.position_embedding.weight.clone()
        vision.embeddings.position_embedding.weight[1:] = positions[1]
    inputs["pixel_values"] = torch.ones_like(inputs["pixel_values"])
    try:
        stock = model.get_image_features(inputs["pixel_values"]).pooler_output[0]
        with foveate.prune(model, ToMeTower(keep=0.5)):
            found = model.get_image_features(inputs["pixel_values"]).pooler_output[0]
    finally:
        with torch.no_grad():
            vision.embeddings.position_embedding.weight.copy_(positions)
    kept = ~found.isnan().any(1)
    assert int(kept.sum()) == 8
    assert close(found[kept], stock[kept]) < 1e-5


def test_features_are_no_longer_silently_wrong_elsewhere() -> None:
    model, inputs = build("qwen2_5_vl"), TABLE["qwen2_5_vl"].batch(ROWS)
    rest = {k: v for k, v in inputs.items() if k not in ("pixel_values", "image_grid_thw")}
    with foveate.prune(model, TowerFilter(keep=0.5)):
        inside = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    assert model.model(**rest, mm_encoder_outputs={"image": inside}).last_hidden_state.isnan().any()
    outside = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    with foveate.prune(model, TowerFilter(keep=0.5)), pytest.raises(MissingTapError, match="encoded outside"):
        model(**rest, mm_encoder_outputs={"image": outside})


def test_hidden_states_of_the_tower_keep_their_shapes() -> None:
    for name in ("qwen2_5_vl", "llava"):
        model, inputs = build(name), TABLE[name].batch(ROWS)
        given = {k: inputs[k] for k in ("pixel_values", "image_grid_thw") if k in inputs}
        stock = model.get_image_features(**given, output_hidden_states=True)
        with foveate.prune(model, DropInTower((1, 2), 0.5, 0)):
            pruned = model.get_image_features(**given, output_hidden_states=True)
        shapes = [[None if x is None else x.shape for x in out.hidden_states] for out in (stock, pruned)]
        assert shapes[0] == shapes[1]
        assert stock.last_hidden_state.shape == pruned.last_hidden_state.shape


def test_what_cannot_be_pruned_says_so() -> None:
    for name in ("gemma3", "llava_next", "llava_pixtral"):
        with pytest.raises(MissingTapError, match="cannot be pruned"), foveate.prune(build(name), TowerFilter()):
            pass
    with (
        pytest.raises(ConfigurationError, match="tower blocks"),
        foveate.prune(build("llava"), DropInTower((3,), 0.5, 0)),
    ):
        pass
    with (
        pytest.raises(ConfigurationError, match="block before"),
        foveate.prune(build("llava"), TowerFilter(by="class_token", block=0)),
    ):
        pass


def test_a_prompt_that_ends_with_a_dropped_token_is_refused() -> None:
    model, inputs = build("qwen2_5_vl"), TABLE["qwen2_5_vl"].batch([[3, ("image", 4, 4)]])
    last = inputs["input_ids"][0, -1]
    if int(last) != model.config.image_token_id:  # an end marker follows the image
        inputs = {
            k: v[:, :-1] if k in ("input_ids", "attention_mask", "mm_token_type_ids") else v for k, v in inputs.items()
        }
    with foveate.prune(model, DropInTower((0,), 0.05, 1)), pytest.raises(InputError, match="text behind"):
        model(**inputs)


def test_gradients_flow_and_checkpointing_is_refused() -> None:
    model, inputs = build("qwen2_5_vl"), TABLE["qwen2_5_vl"].batch(ROWS)
    weight = model.model.visual.blocks[2].attn.qkv.weight
    with foveate.prune(model, DropInTower((1,), 0.5, 0)):
        out = model(**inputs)
    (gradient,) = torch.autograd.grad(out.logits[:, -1].square().sum(), [weight])
    assert torch.isfinite(gradient).all()
    assert bool((gradient != 0).any())
    model.model.visual.gradient_checkpointing_enable()
    model.train()
    try:
        with (
            foveate.prune(model, DropInTower((1,), 0.5, 0)),
            pytest.raises(UnsupportedModelError, match="checkpointing"),
        ):
            model(**inputs)
    finally:
        model.eval()
        model.model.visual.gradient_checkpointing_disable()
