"""Views made by hand, and what a method keeps of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from foveate import Selection, Tap, View
from foveate.core.method import Method
from foveate.core.selection import resolve
from foveate.core.view import ModelInfo

LLAVA = ModelInfo("llava", 32, 24, True, 1)
QWEN = ModelInfo("qwen2_5_vl", 28, 32, False, 1)


def make_view(
    grid: tuple[int, int, int],
    *,
    layer: int = 0,
    taps: Mapping[Tap, Tensor] | None = None,
    hidden: Tensor | None = None,
    text: Tensor | None = None,
    keys: Tensor | None = None,
    text_keys: Tensor | None = None,
    attention: Tensor | None = None,
    index: Tensor | None = None,
    info: ModelInfo = LLAVA,
    memo: dict[str, Any] | None = None,
) -> View:
    """`View.of`, where `hidden` may be left out and attention `[T, n]` is that of a single head."""
    if hidden is None:
        hidden = torch.zeros(grid[0] * grid[1] * grid[2] if index is None else len(index), 1)
    return View.of(
        hidden, grid=grid, layer=layer, taps=taps, text=text, keys=keys, text_keys=text_keys, index=index, info=info,
        attention=None if attention is None else attention[None], memo=memo,
    )  # fmt: skip


def chosen(method: Method, view: View) -> Selection:
    """What the method chooses at the view's layer, checked as a runtime checks it."""
    return resolve([method.select(view)], [len(view)], method.name)[0]


def kept(method: Method, view: View) -> list[int]:
    """Indices of the survivors."""
    return chosen(method, view).index.tolist()


def number(method: Method, n: int, info: ModelInfo = LLAVA) -> list[int]:
    """Tokens of `n` alive after each stage."""
    return list(method.counts(info, n))
