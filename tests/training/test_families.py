"""Rows of any model type train: through its own processor, with boxes and without, and videos where they are read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from foveate.data.rows import Row
from foveate.errors import DataError, MissingTapError, UnsupportedModelError
from foveate.families import adapt
from foveate.glimpse import GlimpseModule
from foveate.training.glimpse.collate import Collator
from foveate.training.glimpse.model import GlimpseForTraining
from foveate.training.glimpse.objectives import Objective
from foveate.training.glimpse.run import GlimpseSettings, train
from tests.clips import write_clip
from tests.families.tiny import TABLE, build
from tests.training.processors import PROCESSORS
from tests.training.runs import DISTILL as DISTILLED
from tests.training.runs import FAST
from tests.training.test_types import ROWS, answered

BOX = (0.5, 0.0, 1.0, 0.5)
BOXES = Objective()
DISTILL = Objective(localization=0, language=0, distillation=1.0, gate_temperature=0.0)
REASONS = ("recurrent", "masks", "vision_config", "Use a method that needs no taps")
"""Why some types cannot be trained."""


def picture(width: int, height: int) -> Image.Image:
    """Grey, with a red rectangle where the evidence is."""
    found = Image.new("RGB", (width, height), "grey")
    left, top, right, bottom = (share * side for share, side in zip(BOX, (width, height) * 2, strict=True))
    ImageDraw.Draw(found).rectangle((left, top, right, bottom), fill="red")
    return found


def rows() -> list[Row]:
    """One image, and two of another shape."""
    pictures = (picture(112, 112), picture(112, 84), picture(84, 112))
    return [
        Row(1, pictures[:1], "Where is it?", ("red",), ((BOX,),)),
        Row(2, pictures[1:], "And here, in both?", ("the other side",), ((BOX,), (BOX,))),
    ]


def overfit(model: Any, batch: dict[str, Any], objective: Objective, rate: float, steps: int = 8) -> list[float]:
    """Losses of a fresh module that learns one batch by heart."""
    torch.manual_seed(1)
    module = GlimpseModule.for_model(model, le_dropout=0.0)
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    found = []
    with GlimpseForTraining(model, module, objective) as training:
        for _ in range(steps):
            optimizer.zero_grad()
            outcome = training.train().outcome(**batch)
            outcome.total.backward()
            optimizer.step()
            found.append(outcome.total.item())
        for row, mask in zip(outcome.logits, outcome.masks or [], strict=False):
            assert row.shape[-1] == len(mask)
            assert 0 < mask.sum() < len(mask)
    return found


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_batch_is_learned_by_heart(name: str) -> None:
    model = build(name)
    collator = Collator(adapt(model), PROCESSORS[name]())
    batch = collator(rows())
    boxes = overfit(model, batch, BOXES, 0.01)
    assert boxes[-1] < boxes[0] - 0.05
    distilled = overfit(model, batch, DISTILL, 3e-4)
    assert distilled[-1] < distilled[0]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_videos_are_learned_from(name: str, tmp_path: Path) -> None:
    pytest.importorskip("av")
    clip = write_clip(tmp_path / "clip.mp4", frames=8, size=(112, 84))
    asked = [
        Row(1, (), "What moves?", ("grey",), videos=(clip,)),
        Row(2, (picture(84, 84),), "And here?", ("it",), videos=(clip,)),
    ]
    model = build(name)
    batch = Collator(adapt(model), PROCESSORS[name](), with_boxes=False)(asked)
    losses = overfit(model, batch, DISTILL, 3e-4)
    assert losses[-1] < losses[0]


def test_a_table_with_videos_is_trained_on(settings: GlimpseSettings, tmp_path: Path) -> None:
    """From a file to a module, unlabelled; evidence boxes are refused."""
    pytest.importorskip("av")
    write_clip(tmp_path / "clip.mp4", frames=8, size=(112, 84))
    rows = [{"video": "clip.mp4", "frames": 4, "question": f"What moves {how}?"} for how in ("fast", "slowly")]
    (tmp_path / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = FAST | {"max_steps": 1, "save_steps": 1}
    run = replace(settings, data=str(tmp_path / "videos.jsonl"), arguments=arguments)
    with pytest.raises(DataError, match="videos cannot be used"):
        train(run)
    metrics = train(replace(run, objective=DISTILLED))
    assert metrics["train_loss"] == metrics["train_loss"]
    assert (run.out / "model.safetensors").is_file()


@pytest.mark.families
@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_type_trains_or_is_refused(name: str) -> None:
    """One step of both objectives; what cannot be trained says why."""
    model = build(name)
    _, batch = answered(name)
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    batch["labels"][:, -3:] = batch["input_ids"][:, -3:]
    both = Objective(distillation=1.0, gate_temperature=0.0)
    reason, losses = "", [1.0, 0.0]
    try:
        losses = overfit(model, {**batch, "boxes": [[[BOX]]] * len(ROWS)}, both, 1e-4, steps=3)
    except (UnsupportedModelError, MissingTapError) as error:
        reason = str(error)
    assert not reason or any(words in reason for words in REASONS), reason
    assert losses[-1] < losses[0]
