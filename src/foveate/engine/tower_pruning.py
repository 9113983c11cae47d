"""Seam 0: tokens are dropped inside the vision tower, before one of its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveate.core.grid import Grid
from foveate.core.method import Method
from foveate.core.selection import Selection, resolve
from foveate.core.tower import TowerStage, TowerView
from foveate.core.view import Tap
from foveate.engine.inputs import by_name
from foveate.errors import UnsupportedModelError
from foveate.families.base import Family
from foveate.families.tower_layouts import Survivors, TowerLayout, tower_layout
from foveate.trace.records import TowerStep

if TYPE_CHECKING:
    from foveate.engine.session import Session

NOTHING = float("nan")
"""Value of a dropped token wherever stock code wants the unpruned length. It goes no further than the language model's
input, where it is dropped; features that are used outside their pruning are not silently wrong."""


@dataclass
class TowerPruning:
    """One call of a tower with stages.

    Attributes:
        now: what is alive.
        history: (block, what is alive from it on), for every stage that dropped or merged anything.
        chosen: what these stages chose, per image.
        early: what a stage at block 0 has chosen by the pixels, before patches are embedded.
        pixels: per image `[N, P]`, if a stage reads them.
    """

    family: Family
    method: Method
    layout: TowerLayout
    grids: list[Grid]
    stages: dict[int, TowerStage]
    now: Survivors
    pixels: list[Tensor] | None = None
    history: list[tuple[int, Survivors]] = field(default_factory=list)
    chosen: list[list[Selection]] = field(default_factory=list)
    early: list[Selection] | None = None
    memos: list[dict[Any, Any]] = field(default_factory=list)
    _arguments: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)

    def at(self, block: int) -> Survivors | None:
        """What was alive in a block, None if everything was."""
        return next((left for first, left in reversed(self.history) if first <= block), None)

    def steps(self, image: int) -> tuple[TowerStep, ...]:
        """What was done to one image."""
        return tuple(
            TowerStep(block, left.alive[image], selections[image])
            for (block, left), selections in zip(self.history, self.chosen, strict=True)
        )

    def whole(self, values: Tensor, block: int, fill: float = 0.0) -> Tensor:
        """A block's values at the unpruned length."""
        left = self.at(block)
        return values if left is None else self.layout.whole(values, left, fill)

    def before(self, number: int, block: nn.Module, given: dict[str, Any], readings: dict[Tap, list[Tensor]]) -> Any:
        """New arguments of a block, None to leave them."""
        name = next(iter(given))
        hidden = given[name]
        if (stage := self.stages.get(number)) is not None:
            own = self.layout.take(hidden, self.now)
            early = self.early if number == 0 else None
            selections = self._choose(stage, own, readings) if early is None else early
            if not all(selection.is_identity for selection in selections):
                self.now = _after(self.now, selections, stage.proportional)
                self.history.append((number, self.now))
                self.chosen.append(selections)
                mixed = [selection.apply(x) for selection, x in zip(selections, own, strict=True)]
                hidden = self.layout.put(mixed, hidden, self.now)
        if not self.history:
            return None
        key = (len(self.history), id(given.get("cu_seqlens")))  # towers with windows have two kinds of segments
        if key not in self._arguments:
            self._arguments[key] = self.layout.arguments(given, hidden, self.now)
        rest = {k: v for k, v in given.items() if k != name}
        return (hidden,), rest | self._arguments[key]

    @torch.no_grad()
    def _choose(
        self, stage: TowerStage, own: Sequence[Tensor | None], readings: dict[Tap, list[Tensor]]
    ) -> list[Selection]:
        taps = {tap: self._tokens(tap, readings) for tap in stage.taps}
        choices = []
        for i, hidden in enumerate(own):
            view = TowerView(
                info=self.family.info,
                block=stage.block,
                index=self.now.alive[i],
                grid=self.grids[i],
                given_hidden=None if hidden is None else hidden.detach(),
                sizes=self.now.sizes[i],
                given_pixels=None if self.pixels is None else self.pixels[i],
                read=lambda tap, i=i: taps[tap][i][self.now.alive[i]],  # type: ignore[misc]
                image=i,
                memo=self.memos[i],
            )
            choices.append(self.method.select_in_tower(view))
        return [
            selection if len(selection) else Selection(selection.n, self.now.alive[i].new_zeros(1))
            for i, selection in enumerate(resolve(choices, list(map(len, self.now.alive)), self.method.name))
        ]

    def _tokens(self, tap: Tap, readings: dict[Tap, list[Tensor]]) -> list[Tensor]:
        return tokens_of(self.family, tap, readings[tap], self.grids, self)


def tokens_of(
    family: Family, tap: Tap, values: Sequence[Tensor], grids: Sequence[Grid], pruning: TowerPruning | None
) -> list[Tensor]:
    """What a tap read in a call, `[N, ...]` per image, zero where the tower had dropped a token before."""
    joined = values[0] if len(values) == 1 else torch.cat(list(values), dim=1)
    if pruning is not None:
        joined = pruning.whole(joined, family.block_of(tap))
    return family.to_tokens(tap, joined, grids)


def _after(now: Survivors, selections: Sequence[Selection], weighted: bool) -> Survivors:
    sizes = []
    for old, selection in zip(now.sizes, selections, strict=True):
        new = old[selection.index]
        if (merge := selection.merge) is not None:
            total = new.new_zeros(len(merge.target)).index_add_(0, merge.segment, old[merge.source])
            new = new.index_copy(0, merge.target, total)
        sizes.append(new)
    alive = tuple(a[selection.index] for a, selection in zip(now.alive, selections, strict=True))
    return replace(now, alive=alive, sizes=tuple(sizes), weighted=now.weighted or weighted)


def begin(session: Session, tower: nn.Module, grids: list[Grid], given: dict[str, Any]) -> TowerPruning | None:
    """Prepare for a call of the tower, if the session's method has stages there.

    Raises:
        UnsupportedModelError: the tower recomputes its blocks in the backward pass.
    """
    method = session.method
    if method is None or not session.tower_stages:
        return None
    if any(module.training and getattr(module, "gradient_checkpointing", False) for module in tower.modules()):
        raise UnsupportedModelError(
            f"{method} prunes the vision tower, which cannot be done with gradient checkpointing in it; turn "
            "checkpointing of the tower off, or freeze it and call eval() on it."
        )
    layout = tower_layout(session.family, grids)
    images = given.get("pixel_values", given.get("hidden_states"))
    assert isinstance(images, Tensor)
    alive = tuple(torch.arange(grid.size, device=images.device) for grid in grids)
    sizes = tuple(torch.ones(grid.size, device=images.device) for grid in grids)
    pixels = layout.pixels(images) if any(stage.pixels for stage in session.tower_stages) else None
    stages = {stage.block: stage for stage in session.tower_stages}
    memos: list[dict[Any, Any]] = [{} for _ in grids]
    pruning = TowerPruning(
        session.family, method, layout, grids, stages, Survivors(alive, sizes), pixels=pixels, memos=memos
    )
    if (first := stages.get(0)) is not None and first.pixels:
        pruning.early = pruning._choose(first, [None] * len(grids), {})
    return pruning


def before_block(number: int) -> Any:
    """Pre-hook of a tower block."""

    def hook(session: Session, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        local = session.local
        if local.pruning is None or local.started is None:
            return None
        return local.pruning.before(number, module, by_name(module, args, kwargs), local.readings)

    return hook


def _embedded(session: Session) -> Tensor | None:
    """`[n]` which tokens, over all images in raster order, need their patches embedded; None: all."""
    pruning = session.local.pruning
    if pruning is None or pruning.early is None or session.local.started is None:
        return None
    if any(selection.merge is not None for selection in pruning.early):
        return None
    starts = [sum(grid.size for grid in pruning.grids[:number]) for number in range(len(pruning.grids))]
    kept = torch.cat([s.index + start for s, start in zip(pruning.early, starts, strict=True)])
    return None if len(kept) == sum(grid.size for grid in pruning.grids) else kept


def before_embedding(session: Session, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Pre-hook of a packed tower's patch embedding: it is given the patches of the survivors only."""
    if (kept := _embedded(session)) is None or not args:
        return None
    patches = session.family.factor**2
    return (args[0].unflatten(0, (-1, patches))[kept].flatten(0, 1), *args[1:]), kwargs


def after_embedding(session: Session, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Any:
    """Post-hook of it: stock code orders all patches before the first block, where the others are dropped."""
    if (kept := _embedded(session)) is None:
        return None
    units = output.unflatten(0, (len(kept), -1))
    total = sum(grid.size for grid in session.local.grids)
    return units.new_zeros(total, *units.shape[1:]).index_copy(0, kept, units).flatten(0, 1)


def before_projection(session: Session, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Pre-hook of a projector: it is given the survivors only."""
    pruning = session.local.pruning
    if pruning is None or not pruning.history or not args:
        return None
    return (pruning.layout.short(args[0], pruning.now), *args[1:]), kwargs


def after_projection(session: Session, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Any:
    """Post-hook of a projector: stock code wants the unpruned number of tokens."""
    pruning = session.local.pruning
    if pruning is None or not pruning.history:
        return None
    return pruning.layout.projected(output, pruning.now, NOTHING)


def restore(pruning: TowerPruning | None, output: Any) -> None:
    """Hidden states that the tower returns, at their unpruned length."""
    if pruning is None or not pruning.history:
        return
    last = len(pruning.family.parts.blocks) - 1
    states = output.get("hidden_states")
    if states is not None:  # the first is what block 0 was given, the others are what blocks gave; None: not asked for
        output.hidden_states = tuple(
            state if state is None or number == 0 else pruning.whole(state, number - 1, NOTHING)
            for number, state in enumerate(states)
        )
    if isinstance(output.get("last_hidden_state"), Tensor):
        output.last_hidden_state = pruning.whole(output.last_hidden_state, last, NOTHING)
