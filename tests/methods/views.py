"""Views made by hand: the visual tokens of one image, then text, in one sequence without padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from foveate import Selection, Tap, View
from foveate.core.grid import Grid
from foveate.core.method import Choice, Method, ModelInfo, Stage
from foveate.core.view import RowState
from foveate.engine.layout import Group

LLAVA = ModelInfo("llava", 32, 24, True)
QWEN = ModelInfo("qwen2_5_vl", 28, 32, False)


def make_view(
    grid: tuple[int, int, int],
    *,
    layer: int = 0,
    taps: Mapping[Tap, Tensor] | None = None,
    hidden: Tensor | None = None,
    text: Tensor | None = None,
    keys: Tensor | None = None,
    attention: Tensor | None = None,
    info: ModelInfo = LLAVA,
    memo: dict[str, Any] | None = None,
) -> View:
    """A view of `n = t*h*w` visual tokens followed by T text tokens.

    Args:
        hidden: `[n, D]`; text: `[T, D]`.
        keys: `[H, n + T, d]` of the previous layer.
        attention: `[n + T, n]` of each query (a row per place) over the visual tokens, for one head.
    """
    n = Grid(*grid).size
    hidden = torch.zeros(n, 1) if hidden is None else hidden
    text = torch.zeros(2, hidden.shape[1]) if text is None else text
    visual = torch.tensor([True] * n + [False] * len(text))
    place = torch.arange(n)

    def read_keys() -> Tensor:
        assert keys is not None
        return keys

    def rows(queries: Tensor) -> Tensor:
        assert attention is not None
        return torch.nn.functional.pad(attention[queries], (0, len(text)))[None]

    state = RowState(torch.cat([hidden, text]), None, visual, len(text), read_keys, rows)
    group = Group(0, 0, (Grid(*grid),), place, dict(taps or {}), place)
    return View(info, layer, place, group.grids, 0, {} if memo is None else memo, group, place, state)


def chosen(method: Method, view: View) -> Selection:
    """What the method chooses at the view's layer."""
    choice: Choice = method.select(Stage(view.layer), view)
    if isinstance(choice, Selection):
        return choice
    return Selection.from_mask(choice) if choice.dtype == torch.bool else Selection(len(view), choice)


def kept(method: Method, view: View) -> list[int]:
    """Indices of the survivors."""
    return chosen(method, view).index.tolist()
