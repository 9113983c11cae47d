"""A short reinforcement-learning run on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from foveate.data.reading import read_rows
from foveate.data.rows import Rules
from foveate.glimpse import GlimpseModule
from foveate.inference.loading import load
from foveate.training.base import load_base
from foveate.training.plus import run as plus
from foveate.training.plus.rewards import Rewards

QUICK = {
    "gradient_accumulation_steps": 2,
    "max_completion_length": 4,
    "max_steps": 2,
    "save_steps": 1,
    "warmup_steps": 0,
    "learning_rate": 0.01,
    "disable_tqdm": True,
}


@pytest.fixture
def run(base: Path, data: Path, tmp_path: Path) -> plus.PlusSettings:
    """A short run whose reward differs between completions, whatever the model says."""
    return plus.PlusSettings(str(base), str(data), tmp_path / "out", arguments=QUICK, layer=1)


@pytest.fixture(scope="module")
def module(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("module")
    model, _ = load(str(base))
    torch.manual_seed(0)
    GlimpseModule.for_model(model, base_model="tiny").save_pretrained(folder)
    return folder


def trainer_of(settings: plus.PlusSettings, rewards: Any = None) -> Any:
    arguments = plus.grpo_arguments(settings)
    examples = read_rows(settings.data, Rules(needs_boxes=False), settings.limit)
    eval_data = None
    if settings.eval_data is not None:
        eval_data = read_rows(settings.eval_data, Rules(needs_boxes=False), settings.eval_limit)
    rewards = rewards or Rewards({"exact_match": 1.0})
    return plus.build_trainer(settings, arguments, examples, rewards, *load_base(settings), eval_data)


def length_reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Something that differs: the parity of the first token."""
    return [float(ids[0] % 2) for ids in completion_ids]


def picture() -> Any:
    return Image.new("RGB", (112, 140), "blue")
