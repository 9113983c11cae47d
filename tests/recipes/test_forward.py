"""The training-time forward passes give what the stock models give."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch
from torch import nn

from foveate.data.videos import Clip
from foveate.inference.video_processor import VideoProcessor
from foveate.zoo import SYSTEM
from recipes.zoo import config, films, llava, qwen
from recipes.zoo.batches import question, render
from recipes.zoo.config import BatchConfig
from recipes.zoo.encoders import QwenEncoder
from recipes.zoo.forward import read
from recipes.zoo.heads import DenseHeads
from recipes.zoo.prompts import Prompts
from recipes.zoo.stages import LanguageStage, reach, reaches
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
def test_a_video_is_read_as_the_stock_model_reads_it(tokenizer):
    """From rendered frames to logits: pixels, pairs of frames, temporal positions, prompt."""
    made = qwen.create(config.load("qwen2_5_vl.yaml"), tokenizer).eval()
    torch.manual_seed(0)
    for p in made.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, 0, 0.05)
    kind = config.BatchConfig(size=(112, 112), images=2, shapes=(1, 1), shows="videos", frames=6)
    batch = films.render_films(5, kind)
    asked = films.question_films(batch, 5, 2, {})
    stage = LanguageStage(
        config.load("qwen2_5_vl_wide.yaml"), made, QwenEncoder(made), DenseHeads(192), Prompts(tokenizer)
    )
    said = stage.answer(stage.encoder(batch.pixels, 0), asked, 1, False, times=batch.times)
    limits = {"shortest_edge": 112 * 112, "longest_edge": 448 * 448}
    describe = VideoProcessor.of("Qwen2VLVideoProcessor", {"size": limits})
    for i, film in enumerate(batch.films):
        taken = tuple(range(0, 18, 3))
        clip = Clip(np.stack([np.asarray(film.images[t]) for t in taken]), taken, 18, 8.0)
        video = describe([clip])
        seconds = [2 / (6 / 18 * 8.0)]
        for k, (text, _) in enumerate(asked.texts[i]):
            content = [{"type": "video"}, {"type": "text", "text": text}]
            turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]
            prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            prompt = prompt.replace("<|video_pad|>", "<|video_pad|>" * (3 * 4 * 4))
            ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
            kinds = 2 * (ids == tokenizer.convert_tokens_to_ids("<|video_pad|>")).int()
            stock = made(input_ids=ids, mm_token_type_ids=kinds, second_per_grid_ts=seconds, **video).logits[0, -1]
            first = int((said.labels[i, k] >= 0).nonzero()[0])
            torch.testing.assert_close(said.logits[i, k, first], stock, **CLOSE)


@torch.no_grad()
def test_questions_see_the_image_in_their_layers_only(model, tokenizer):
    prompts = Prompts(tokenizer)
    ids, _ = prompts.blocks([[("What is the total?", "42")]])
    layout = prompts.layout(1, 4, 8, 1, ids.shape[-1])
    mrope = hasattr(model.model, "visual")
    positions = layout.positions[:, None] if mrope else layout.flat_positions(1, ids.shape[-1])
    text, prefix = model.model.language_model, len(layout.ids)
    torch.manual_seed(0)
    x = torch.randn(1, prefix + ids.shape[-1], 192)
    # without text behind the image in the prefix, nothing but the question can carry what it shows
    prefix -= 1
    x, positions = torch.cat([x[:, :prefix], x[:, prefix + 1 :]], 1), positions[..., :-1]
    visual = layout.visual[:-1]
    other = x.clone()
    other[:, :prefix][:, visual] = torch.randn(1, int(visual.sum()), 192)

    def asked(inputs, layers):
        hidden = torch.ones(len(text.layers), 1, 1, dtype=torch.bool)
        hidden[list(layers)] = False
        return read(text, inputs, positions, prefix, 1, hidden=(visual, hidden))[0][:, prefix:]

    torch.testing.assert_close(asked(x, range(0)), asked(other, range(0)), **CLOSE)
    assert (asked(x, range(4, 5)) - asked(other, range(4, 5))).abs().max() > 1e-2
    whole = read(text, x, positions, prefix, 1)[0][:, prefix:]
    torch.testing.assert_close(asked(x, range(len(text.layers))), whole, **CLOSE)


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


def test_runs_of_layers_are_drawn_as_the_recipe_says():
    stage = config.load("qwen2_5_vl_wide.yaml").language
    rng = Random(0)
    drawn = [reach(stage, 10, "count", rng) for _ in range(2000)]
    some = [layers for layers in drawn if len(layers) < 10]
    whole = 1 / (10 - stage.reach_layers + 1)  # of the runs, as long as there are layers
    assert len(some) == pytest.approx(stage.reach_share * (1 - whole) * 2000, abs=100)
    assert min(len(layers) for layers in some) == stage.reach_layers
    assert {layers.start for layers in some} >= {0, 1, 2, 3, 4}
    assert {layers.stop for layers in some} == set(range(stage.reach_layers, 11))


def test_runs_lie_in_the_window_of_their_question():
    stage = config.load("qwen2_5_vl_wide_run3.yaml").language
    rng = Random(0)
    for kind, (first, end) in stage.reach_windows.items():
        some = [layers for _ in range(300) if len(layers := reach(stage, 10, kind, rng)) < 10]
        assert {layers.start for layers in some} == set(range(first, end - stage.reach_layers + 1))
        assert {layers.stop for layers in some} == set(range(first + stage.reach_layers, end + 1))


def test_every_question_of_a_batch_has_layers_of_its_own():
    stage = config.load("qwen2_5_vl_wide_run3.yaml").language
    batch = render(0, BatchConfig((224, 224), 3, (2, 4)))
    asked = question(batch, 0, stage.questions, 1, {})
    seen = reaches(stage, 10, asked, 5)
    assert seen.shape == (10, 3, stage.questions)
    assert torch.equal(seen, reaches(stage, 10, asked, 5))
    assert not torch.equal(seen, reaches(stage, 10, asked, 6))
    for b, questions in enumerate(asked.questions):
        for i, q in enumerate(questions):
            layers = seen[:, b, i].nonzero().flatten().tolist()
            assert layers == list(range(layers[0], layers[-1] + 1))
            assert len(layers) == 10 or set(layers) <= set(range(*stage.reach_windows[q.type]))
    assert reaches(config.load("qwen2_5_vl.yaml").language, 10, asked, 5) is None
