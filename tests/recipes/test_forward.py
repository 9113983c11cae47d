"""The training-time forward passes give what the stock models give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from foveate.zoo import SYSTEM
from recipes.zoo import config, llava, qwen
from recipes.zoo.forward import read
from recipes.zoo.prompts import Prompts
from recipes.zoo.tokenizer import build

CLOSE = {"atol": 3e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def tokenizer():
    return build()


@pytest.fixture(scope="module", params=["qwen2_5_vl", "llava"])
def model(request, tokenizer):
    family = qwen if request.param == "qwen2_5_vl" else llava
    made = family.create(config.load(f"{request.param}.yaml"), tokenizer).eval()
    for p in made.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, 0, 0.05)
    return made


@torch.no_grad()
def test_features_equal_the_stock_towers(model):
    is_qwen = hasattr(model.model, "visual")
    height, width = (224, 336) if is_qwen else (336, 336)
    pixels = torch.randn(2, height, width, 3)
    if is_qwen:
        own, rows, columns = qwen.features(model, pixels), height // 14, width // 14
        x = pixels.reshape(2, rows // 2, 2, 14, columns // 2, 2, 14, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)
        x = x[:, :, :, :, :, :, None].expand(-1, -1, -1, -1, -1, -1, 2, -1, -1).reshape(2 * rows * columns, -1)
        stock = model.model.get_image_features(x, torch.tensor([[1, rows, columns]] * 2))
    else:
        own, _ = llava.features(model, pixels)
        stock = model.model.get_image_features(pixel_values=pixels.permute(0, 3, 1, 2))
    tensors = getattr(stock, "pooler_output", stock)
    torch.testing.assert_close(torch.stack(list(tensors)).view_as(own), own, **CLOSE)


@torch.no_grad()
def test_blocks_equal_separate_prompts(model, tokenizer):
    prompts = Prompts(tokenizer)
    ids, _ = prompts.blocks([[("What is the total?", "42"), ("How many shapes are there?", "3")]])
    length = ids.shape[-1]
    layout = prompts.layout(1, 4, 8, 2, length)
    mrope = hasattr(model.model, "visual")
    positions = layout.positions[:, None] if mrope else layout.flat_positions(2, length)
    prefix = len(layout.ids)
    x = torch.randn(1, prefix + 2 * length, 192)
    text = model.model.language_model
    together, seen = read(text, x, positions, prefix, 2, probe_layer=3)
    for block in range(2):
        own = [*range(prefix), *range(prefix + block * length, prefix + (block + 1) * length)]
        alone = text(inputs_embeds=x[:, own], position_ids=positions[..., own]).last_hidden_state
        torch.testing.assert_close(together[:, own], alone, **CLOSE)
    assert seen.shape == (1, 6, 2, length, prefix)
    assert (seen.sum(-1) <= 1 + 1e-5).all()


def test_prompts_equal_the_chat_template(tokenizer):
    prompts = Prompts(tokenizer)
    rows, columns, images = 4, 8, 2
    ids, labels = prompts.blocks([[("What is the total?", "42")]])
    layout = prompts.layout(images, rows, columns, 1, ids.shape[-1])
    content = [{"type": "image"}] * images + [{"type": "text", "text": "What is the total?"}]
    turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    text = text.replace("<|image_pad|>", "<|image_pad|>" * (rows * columns))
    whole = tokenizer(text + "42<|im_end|>", return_tensors="pt")["input_ids"]
    own = torch.cat([layout.ids, ids[0, 0]])
    assert own.tolist() == whole[0, :-1].tolist()
    asked = labels[0, 0][labels[0, 0] >= 0]
    assert tokenizer.decode(asked) == "42<|im_end|>"

    model = qwen.create(config.load("qwen2_5_vl.yaml"), tokenizer)
    grids = torch.tensor([[1, 2 * rows, 2 * columns]] * images)
    kinds = (whole == prompts.image).int()
    stock, _ = model.model.get_rope_index(whole, mm_token_type_ids=kinds, image_grid_thw=grids)
    assert stock[:, 0, :-1].tolist() == layout.positions.tolist()
