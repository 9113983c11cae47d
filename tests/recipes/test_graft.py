"""What carries over from a Qwen2.5-VL tower to a CLIP tower, and what each layer is asked to follow."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from transformers import Qwen2_5_VLForConditionalGeneration

from foveate import zoo
from recipes.zoo import config, llava, qwen
from recipes.zoo.encoders import LlavaEncoder, follow, look_alike
from recipes.zoo.graft import STEADY, position_dims
from recipes.zoo.tokenizer import build

WIDTH = 128


@pytest.fixture(scope="module")
def teacher():
    folder = zoo.resolve("foveate/scenes-qwen2_5_vl")
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)


@pytest.fixture(scope="module")
def student(teacher):
    return llava.create(config.load("llava.yaml"), build(), teacher).requires_grad_(False)


@pytest.fixture(scope="module")
def pixels():
    return qwen.sample_pixels(3, 112)


def embedded(student, pixels, offset=(0, 0)):
    """What enters the first layer."""
    seen = []
    first = student.model.vision_tower.encoder.layers[0]
    hook = first.layer_norm1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    llava.encode(student.model.vision_tower, pixels, offset)
    hook.remove()
    return seen[0][:, 1:]


def test_the_patches_enter_the_first_layer_as_they_enter_the_teachers_first_block(student, teacher, pixels):
    own = embedded(student, pixels)[..., :WIDTH]
    states = qwen.teach(teacher, pixels).states
    # LayerNorm takes one mean off all dimensions of a token, which the constants do not outweigh
    shift = (own - states[0]).mean(-1, keepdim=True)
    torch.testing.assert_close(own, states[0] + shift, atol=0.05, rtol=0.01)


def test_positions_are_what_is_left_of_the_embeddings(student, pixels):
    table = student.model.vision_tower.embeddings.position_embedding.weight
    grid = table[1:].view(24, 24, -1)[5 : 5 + 8, 9 : 9 + 8].reshape(1, 64, -1)
    own = embedded(student, pixels, (5, 9))
    places = position_dims(24)
    assert places == 18
    shift = own[..., WIDTH + 2 : -places]  # dimensions that hold nothing
    torch.testing.assert_close(own[..., -places:], grid[..., -places:] + shift[..., :1], atol=0.05, rtol=0.01)


def test_values_and_outputs_are_the_teachers(student, teacher, pixels):
    block, layer = teacher.model.visual.blocks[2], student.model.vision_tower.encoder.layers[2]
    state = qwen.teach(teacher, pixels).states[2]
    normed = F.rms_norm(state, (WIDTH,), block.norm1.weight, 1e-6)
    expected = block.attn.proj(F.linear(normed, block.attn.qkv.weight[2 * WIDTH :], block.attn.qkv.bias[2 * WIDTH :]))
    entering = F.pad(state, (0, 32))
    entering[..., WIDTH : WIDTH + 2] = torch.tensor([STEADY, -STEADY])
    own = layer.self_attn.out_proj(layer.self_attn.v_proj(layer.layer_norm1(entering)))[..., :WIDTH]
    assert F.cosine_similarity(own, expected, dim=-1).mean() > 0.95


def test_a_forced_layer_reads_the_teacher_and_teaches_nothing_before_it(teacher, pixels):
    model = llava.create(config.load("llava.yaml"), build(), teacher)
    encoder = LlavaEncoder(model, teacher)
    encoder(pixels, step=0, forced=True)
    encoder._seen.states[3].square().mean().backward()
    layers = model.model.vision_tower.encoder.layers
    moved = [layer.mlp.fc2.weight.grad is not None for layer in layers[:7]]
    assert moved == [False] * 3 + [True] + [False] * 3


def test_following_falls_to_zero_when_the_layers_agree(teacher, pixels):
    states = qwen.teach(teacher, pixels).states
    assert follow([torch.randn(*s.shape[:2], 160) for s in states], states) > 0.9
    assert follow([F.pad(s, (0, 32), value=7.0) for s in states], states) == 0


def test_looks_diverge_by_what_goes_elsewhere(teacher, pixels):
    maps = qwen.teach(teacher, pixels).attention
    assert [a.shape for a in maps] == [(3, 4, 64, 64)] * 6
    same = [F.pad(a, (1, 0, 1, 0)) for a in maps]  # a class token that nobody looks at
    assert look_alike(same, maps) == pytest.approx(0, abs=1e-5)
    half = [F.pad(a / 2, (1, 0, 1, 0), value=0.5) for a in maps]
    assert look_alike(half, maps) == pytest.approx(math.log(2), abs=0.02)
    assert look_alike(same, []) == 0


def test_a_lesson_is_in_raster_order(teacher):
    """A patch attends most to its own neighbourhood: the maps' rows and columns are the grid's."""
    pixels = qwen.sample_pixels(2, 224)
    lesson = qwen.teach(teacher, pixels)
    first = lesson.states[0].view(2, 16, 16, -1)
    kernel = teacher.model.visual.patch_embed.proj.weight.sum(2)
    expected = F.conv2d(pixels.permute(0, 3, 1, 2), kernel, stride=14).permute(0, 2, 3, 1)
    torch.testing.assert_close(first, expected, atol=1e-3, rtol=1e-4)
    assert len(lesson.attention) == 6
    for block, attention in enumerate(lesson.attention):
        assert attention.shape == (2, 4, 256, 256)
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 4, 256))
        corner = attention.view(2, 4, 16, 16, 16, 16)[:, :, :8, :8]  # looks from the first window
        elsewhere = corner[..., 8:, :].sum() + corner[..., :8, 8:].sum()
        assert (elsewhere > 0) == (block in teacher.config.vision_config.fullatt_block_indexes)
    assert qwen.teach(teacher, qwen.sample_pixels(1, 336)).attention == []
