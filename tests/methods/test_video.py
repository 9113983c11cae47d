"""Every method prunes videos, frame grids included, with a budget per video or per frame."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import foveate
from foveate.core.budget import Keep
from foveate.engine.replay import Replay, row_choices
from foveate.families import adapt
from foveate.methods import registry
from tests.reference import generate, masked_logits
from tests.test_matrix import configured
from tests.tiny import Tiny

FRAMES, HEIGHT, WIDTH, VIDEO = 3, 4, 6, 89
TOKENS = FRAMES * HEIGHT * WIDTH
OTHER = ("compose", "glimpse_prune", "pixel_prune")  # without a `keep` of their own
BY_FRAME = [name for name, kind in registry().items() if kind.takes_frames and name not in OTHER]


def video() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[5, 6, 91, *[VIDEO] * TOKENS, 92, 7, 8, 9]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == VIDEO).int() * 2,
        "pixel_values_videos": torch.randn(4 * TOKENS, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(0)),
        "video_grid_thw": torch.tensor([[FRAMES, 2 * HEIGHT, 2 * WIDTH]]),
    }


def stock_logits(tiny: Tiny, method: Any, inputs: dict[str, torch.Tensor], seen: Any, tokens: Any) -> torch.Tensor:
    """Of stock code that holds every token and masks the dropped ones."""
    compact = any(stage.compact_earlier for stage in method.stages(adapt(tiny.model).info))
    given = inputs | {"image_grid_thw": None}  # the positions are the model's own
    return torch.stack(masked_logits(tiny.model, given, seen, list(tokens.unbind(1)), compact), 1)


@pytest.mark.parametrize("name", list(registry()))
def test_a_video_is_pruned(name: str, tiny_qwen: Tiny) -> None:
    inputs, method = video(), configured(name, 1 / 3, tiny_qwen)
    with foveate.prune(tiny_qwen.model, method) as trace:
        tokens, logits = generate(tiny_qwen.model, inputs, 2)
    assert torch.isfinite(logits).all()
    alive = trace.last.alive_per_layer()
    assert alive == sorted(alive, reverse=True)
    assert 0 < alive[-1] < TOKENS
    if not method.adaptive:
        assert trace.keep_ratio == pytest.approx(1 / 3, abs=2 / TOKENS)
    seen = trace.to_dict()
    in_tower = method.tower_stages(adapt(tiny_qwen.model).info)
    if not in_tower and not any(row["merges"] for row in seen["rows"]):  # then dropping must equal masking
        assert torch.allclose(logits, stock_logits(tiny_qwen, method, inputs, seen, tokens), atol=1e-4)


@pytest.mark.parametrize("name", BY_FRAME)
def test_a_budget_per_frame(name: str, tiny_qwen: Tiny) -> None:
    inputs = video()
    method = replace(configured(name, 1 / 3, tiny_qwen), keep=Keep(ratio=1 / 3, per="frame"))
    with foveate.prune(tiny_qwen.model, method) as trace:
        _, logits = generate(tiny_qwen.model, inputs, 2)
    (group,) = trace.last.groups
    for layer in range(trace.last.layers):
        each = torch.bincount(group.alive_at(layer).cpu() // (HEIGHT * WIDTH), minlength=FRAMES)
        assert len(set(each.tolist())) == 1
    assert trace.keep_ratio == pytest.approx(1 / 3, abs=2 / (HEIGHT * WIDTH))
    again = Replay(row_choices(trace.last, method, adapt(tiny_qwen.model).info))
    with foveate.prune(tiny_qwen.model, again):
        _, repeated = generate(tiny_qwen.model, inputs, 2)
    assert torch.allclose(logits, repeated, atol=1e-6)


@pytest.mark.parametrize("name", BY_FRAME)
def test_everything_of_every_frame_is_the_stock_model(name: str, tiny_qwen: Tiny) -> None:
    inputs = video()
    _, stock = generate(tiny_qwen.model, inputs, 2)
    method = replace(configured(name, 1 / 3, tiny_qwen), keep=Keep(count=HEIGHT * WIDTH, per="frame"))
    with foveate.prune(tiny_qwen.model, method):
        assert torch.equal(generate(tiny_qwen.model, inputs, 2)[1], stock)
