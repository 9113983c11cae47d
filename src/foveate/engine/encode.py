"""The way of a stock model up to its language model, for training: what that is called with, and what lies where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import nn

from foveate.core.budget import Per
from foveate.core.method import Method, Stage
from foveate.core.view import ModelInfo, Tap
from foveate.engine.attach import prune
from foveate.engine.inputs import by_name
from foveate.engine.layout import Layout
from foveate.engine.session import current_session
from foveate.errors import InputError
from foveate.families.base import Family


@dataclass(frozen=True, eq=False)
class ReadTower(Method):
    """Reads the outputs of vision blocks and drops nothing.

    Args:
        blocks: of the vision tower, from 0.
    """

    keep: None = field(init=False, default=None)
    blocks: tuple[int, ...]
    per: Per = "prompt"

    def stages(self, info: ModelInfo) -> Sequence[Stage]:
        return ()

    def taps(self, info: ModelInfo) -> Sequence[Tap]:
        return tuple(Tap("hidden", block) for block in self.blocks)


class _Reached(Exception):  # noqa: N818 - control flow, not an error
    """Ends a forward pass at the language model, whose arguments it carries."""

    def __init__(self, arguments: dict[str, Any], layout: Layout | None) -> None:
        self.arguments, self.layout = arguments, layout


@torch.no_grad()
def encode(family: Family, batch: Mapping[str, Any], blocks: Sequence[int]) -> tuple[dict[str, Any], Layout]:
    """What the language model would be called with, by name, and where the images lie in it, a group per prompt.

    Args:
        batch: arguments of the base model.
        blocks: vision blocks (from 0) whose outputs become `Tap("hidden", block)` of the groups.

    Raises:
        InputError: no image, or placeholders that do not match the images.
        MissingTapError: no such vision block.
    """
    base = family.parts.base

    def stop(text: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        session = current_session(base)
        call = None if session is None else session.local.call
        forward = None if call is None else call.forward
        raise _Reached(by_name(text, args, kwargs), None if forward is None else forward.layout)

    with prune(base, ReadTower(tuple(blocks))):
        handle = family.parts.text.register_forward_pre_hook(stop, with_kwargs=True)  # behind those of the block
        try:
            base(**batch, use_cache=False)
        except _Reached as reached:
            arguments, layout = reached.arguments, reached.layout
        else:
            raise AssertionError("the model never called its language model")
        finally:
            handle.remove()
    if layout is None:
        raise InputError("a training batch has no images; every example needs at least one")
    return arguments, layout
