"""Videos of the LLaVA line from frames to a pruned answer: as many placeholders as the model makes tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import foveate
from foveate.data.videos import Clip
from foveate.families import adapt
from foveate.inference.video_processor import VideoProcessor
from foveate.inference.video_prompts import replacement
from tests.families.tiny import VIDEO, build
from tests.families.types import TABLE
from tests.reference import Drop

SQUARE = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "llava_next_video": ("LlavaNextVideoVideoProcessor", SQUARE, 6),
    "llava_onevision": ("LlavaOnevisionVideoProcessor", {"size": {"height": 56, "width": 56}}, 6),
    "video_llava": ("VideoLlavaVideoProcessor", SQUARE, 8),
}
assert TABLE


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_video_has_as_many_places_as_tokens(name: str) -> None:
    kind, settings, frames = CASES[name]
    model = build(name)
    family = adapt(model)
    processor: Any = SimpleNamespace(family=family, video_token="v", video_processor=VideoProcessor.of(kind, settings))
    shown = np.random.default_rng(0).integers(0, 256, (frames, 90, 120, 3), dtype=np.uint8)
    clip = Clip(shown, tuple(range(frames)), frames, 10.0)
    values = dict(processor.video_processor([clip, clip]))
    counts = [replacement(processor, clip, values, number).count("v") for number in range(2)]
    ids = torch.tensor([[7, 8, *[VIDEO] * count, 9, 10] for count in counts])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **values}
    with foveate.prune(model, Drop((0,), 0.5)) as trace:
        model.generate(**inputs, max_new_tokens=1)  # stock code counts too
    for group, count in zip(trace.last.groups, counts, strict=True):
        (grid,) = group.grids
        assert grid.t == frames
        assert len(group.columns) == count
        assert len(group.steps[0].alive) == grid.size // 2
