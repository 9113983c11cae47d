"""What a method itself computes is counted, whatever the model does beside it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from foveate.bench.own_work import own_flops
from foveate.core.method import Choice
from foveate.core.view import View
from foveate.methods import FastV, Random, ToMeTower
from tests.tiny import make_tiny

ROWS = [[3, (6, 6), 5], [9, (6, 6), 2]]


@dataclass(frozen=True, eq=False)
class OneProduct(Random):
    """Multiplies two matrices of known sizes before it chooses."""

    def choose(self, view: View, count: int) -> Choice:
        torch.ones(7, 11) @ torch.ones(11, 13)
        return super().choose(view, count)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_one_product_an_image(family: str) -> None:
    tiny = make_tiny(family)
    inputs = tiny.batch(ROWS)
    assert own_flops(tiny.model, inputs, OneProduct(keep=0.5)) == 2 * (2 * 7 * 11 * 13)
    assert own_flops(tiny.model, inputs, Random(keep=0.5)) == 0
    assert own_flops(tiny.model, inputs, None) == 0


def test_a_stage_inside_the_language_model_is_counted_alone() -> None:
    tiny = make_tiny("llava")
    text = tiny.model.config.text_config
    width = text.hidden_size // text.num_attention_heads
    inputs = tiny.batch([[3, (6, 6), 5]])
    length = inputs["input_ids"].shape[1]
    rows = 2 * text.num_attention_heads * width * length  # the last token's scores of one layer
    assert own_flops(tiny.model, inputs, FastV(keep=0.5, layer=2)) == rows


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_work_in_the_tower_is_counted_alone(family: str) -> None:
    """Merging once: the cosines of half of an image's tokens with the other half, nothing of the tower itself."""
    tiny = make_tiny(family, "eager")
    inputs = tiny.batch([[3, (6, 6), 5]])
    tokens = int((inputs["input_ids"] == 90).sum())
    vision = tiny.model.config.vision_config
    width = vision.hidden_size // getattr(vision, "num_heads", getattr(vision, "num_attention_heads", 0))
    assert own_flops(tiny.model, inputs, ToMeTower(keep=0.6, blocks=1)) == 2 * (tokens // 2) ** 2 * width
