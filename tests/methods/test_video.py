"""Every method prunes a video, frame grids included."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.methods import registry
from tests.test_matrix import configured
from tests.tiny import Tiny

FRAMES, HEIGHT, WIDTH, VIDEO = 3, 4, 6, 89


@pytest.mark.parametrize("name", list(registry()))
def test_a_video_is_pruned(name: str, tiny_qwen: Tiny) -> None:
    tokens = FRAMES * HEIGHT * WIDTH
    ids = torch.tensor([[5, 6, 91, *[VIDEO] * tokens, 92, 7, 8, 9]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == VIDEO).int() * 2,
        "pixel_values_videos": torch.randn(4 * tokens, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(0)),
        "video_grid_thw": torch.tensor([[FRAMES, 2 * HEIGHT, 2 * WIDTH]]),
    }
    with foveate.prune(tiny_qwen.model, configured(name, 1 / 3, tiny_qwen)) as trace, torch.no_grad():
        logits = tiny_qwen.model(**inputs).logits
    assert torch.isfinite(logits).all()
    alive = trace.last.alive_per_layer()
    assert alive == sorted(alive, reverse=True)
    if name == "pixel_prune":  # nothing repeats in noise
        assert alive[-1] == tokens
        return
    assert 0 < alive[-1] < tokens
    if name != "glimpse_prune":  # its cap counts from its own layer on
        assert trace.keep_ratio == pytest.approx(1 / 3, abs=2 / tokens)
