"""The picture of what was kept, from the pixels to the picture: where the kept tokens' tint lies."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import foveate
from foveate.core.method import Method, Stage
from foveate.core.view import ModelInfo, View
from tests.families.pictures import LAYOUTS, model_for, prompt
from tests.families.test_types import FEW
from tests.families.tiny import build
from tests.families.types import TABLE
from tests.reference import Drop

SIZE = (336, 224)
BOXES = [(0.62, 0.08, 0.92, 0.42), (0.06, 0.55, 0.36, 0.95)]
"""Objects: left, top, right, bottom in shares of the picture."""


@dataclass(frozen=True, init=False, eq=False)
class Differing(Method):
    """Keeps the tokens that differ from those of another picture by at least a third of the largest difference.

    Args:
        plain: what the tokens of the other picture were, None: note them and keep everything but one.
    """

    keep: None = field(init=False, default=None)
    plain: Tensor | None
    seen: list[Tensor]

    def __init__(self, plain: Tensor | None = None) -> None:
        object.__setattr__(self, "keep", None)
        object.__setattr__(self, "positions", "original")
        object.__setattr__(self, "plain", plain)
        object.__setattr__(self, "seen", [])

    def stages(self, info: ModelInfo) -> list[Stage]:
        return [Stage(0)]

    def select(self, view: View) -> Tensor:
        self.seen.append(view.hidden)
        if self.plain is None:
            return torch.arange(len(view)) > 0
        change = (view.hidden - self.plain).norm(dim=-1)
        return change > change.max() / 3


def painted(box: tuple[float, ...] | None) -> Image.Image:
    picture = Image.new("RGB", SIZE, (40, 40, 40))
    if box is not None:
        left, top, right, bottom = (share * side for share, side in zip(box, SIZE * 2, strict=True))
        ImageDraw.Draw(picture).rectangle((left, top, right, bottom), fill=(255, 230, 0))
    return picture


def ask(name: str, picture: Image.Image, method: Method) -> Any:
    model = model_for(name)
    with foveate.prune(model, method) as trace, torch.no_grad():
        model.generate(**prompt(name, picture), max_new_tokens=1)
    return trace


def layouts() -> list[Any]:
    return [name if name in FEW else pytest.param(name, marks=pytest.mark.families) for name in LAYOUTS]


@pytest.mark.families
@pytest.mark.parametrize("name", ["idefics2", "aria", "deepseek_ocr2"])
def test_tokens_of_a_resampler_are_only_counted(name: str) -> None:
    model, inputs = build(name), TABLE[name].batch([[3, ("image", 2, 2), 4]])
    with foveate.prune(model, Drop((0,), 0.5)) as trace, torch.no_grad():
        model.generate(**inputs, max_new_tokens=1)
    drawn = np.asarray(trace.overlay(painted(None)))[: 2 * SIZE[1]]
    assert np.abs(drawn.astype(int) - 40).max() < 6
    assert not any(grid.placed for group in trace.last.groups for grid in group.grids)


@pytest.mark.parametrize("box", BOXES, ids=["upper right", "lower left"])
@pytest.mark.parametrize("name", layouts())
def test_the_kept_tokens_lie_on_the_object(name: str, box: tuple[float, ...]) -> None:
    plain = Differing()
    ask(name, painted(None), plain)
    trace = ask(name, painted(box), Differing(plain.seen[0]))
    drawn = trace.overlay(painted(box))
    if folder := os.environ.get("FOVEATE_OVERLAYS"):  # to look at them
        drawn.save(Path(folder) / f"{name}_{int(100 * box[0])}.png")
    width, height = 2 * SIZE[0], 2 * SIZE[1]  # small pictures are enlarged
    page = np.asarray(drawn).astype(int)[:height]
    panels = [page[:, start : start + width] for start in range(0, page.shape[1], width + 8)]
    assert len(panels) == (2 if name in ("llava_next", "llava_onevision", "internvl", "idefics3") else 1)
    for panel in panels:
        yellow = (panel[..., 0] > 240) & (panel[..., 2] < 40)  # the object, untinted
        left, top, right, bottom = (round(share * side) for share, side in zip(box, (width, height) * 2, strict=True))
        inside = yellow[top:bottom, left:right]
        assert inside.sum() > 0.6 * inside.size  # frames of kept tokens lie over the rest
        clear = (np.abs(panel - 40).max(-1) < 6) | yellow | (np.abs(panel - (64, 220, 96)).max(-1) < 40)
        beside = clear.sum() - clear[top:bottom, left:right].sum()
        assert beside < 0.25 * panel.shape[0] * panel.shape[1]
