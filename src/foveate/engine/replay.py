"""Repeating recorded choices: what a rollout kept is kept again when its log-probabilities are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from foveate.core.budget import Per
from foveate.core.method import BEFORE_LLM, Method, Stage
from foveate.core.selection import Choice, Selection
from foveate.core.tower import TowerStage, TowerView
from foveate.core.view import ModelInfo, View
from foveate.engine.layout import Layout
from foveate.engine.masks import Later
from foveate.errors import ConfigurationError
from foveate.trace.records import PrefillTrace, TowerStep


@dataclass(frozen=True, eq=False)
class RowChoices:
    """What was chosen for one row of a batch.

    Attributes:
        stages: where.
        selections: by (stage layer, image of the row).
        length: real tokens of the unpruned prompt.
        kept, total: visual tokens after the last stage and in the unpruned prompt.
        tower: per image of the row, what was chosen in the vision tower.
        weighted: blocks of the tower from which on attention is proportional.
    """

    stages: tuple[Stage, ...]
    selections: dict[tuple[int, int], Selection]
    length: int
    kept: int
    total: int
    per: Per = "image"
    tower: tuple[tuple[TowerStep, ...], ...] = ()
    weighted: frozenset[int] = frozenset()


def row_choices(prefill: PrefillTrace, method: Method, info: ModelInfo) -> list[RowChoices]:
    """The choices of every row of a recorded prefill under `method`."""
    stages = tuple(replace(s, reads="nothing", positions=s.positions or method.positions) for s in method.stages(info))
    weighted = frozenset(stage.block for stage in method.tower_stages(info) if stage.proportional)
    rows = []
    for row in range(prefill.rows):
        groups = [group for group in prefill.groups if group.row == row]
        choices = {(step.layer, group.image): step.selection for group in groups for step in group.steps}
        kept = sum(len(group.alive_at(prefill.layers)) for group in groups)
        length = prefill.length - prefill.padding[row]
        total = sum(group.shown for group in groups)
        per: Per = "prompt" if method.per == "prompt" else "image"  # choices of all frames are one
        tower = tuple(steps for group in groups for steps in group.tower)
        rows.append(RowChoices(stages, choices, length, kept, total, per, tower, weighted))
    return rows


@dataclass(frozen=True, eq=False)
class Replay(Method):
    """Repeats recorded choices, row by row, on prompts that may have grown at their end.

    Nothing is read and no probe is appended: the choice belongs to the prompt as it was, so tokens that were
    added since (a completion, say) have no part in it. Where the recorded prefill compacted the caches of earlier
    layers, these tokens do not see what it removed, as while decoding.

    Args:
        rows: one entry per row of the batch to come, all of the same method.

    Raises:
        ConfigurationError: no rows, or rows of different methods.
    """

    keep: None = field(default=None, init=False, repr=False)
    rows: Sequence[RowChoices] = ()

    def __post_init__(self) -> None:
        if not self.rows:
            raise ConfigurationError("Replay needs the choices of at least one row.")
        first = self.rows[0]
        if any(row.stages != first.stages or row.per != first.per for row in self.rows):
            raise ConfigurationError("Replay was given rows of different methods; replay them one method at a time.")

    @property
    def per(self) -> Per:
        return self.rows[0].per

    @property
    def prunes(self) -> bool:
        return True

    def check(self, info: ModelInfo) -> None:
        """Nothing can be wrong: the choices were made on such a model."""

    def parameters(self) -> dict[str, Any]:
        return {"rows": len(self.rows)}

    def stages(self, info: ModelInfo) -> Sequence[Stage]:
        return self.rows[0].stages

    def tower_stages(self, info: ModelInfo) -> Sequence[TowerStage]:
        blocks = {step.block for row in self.rows for steps in row.tower for step in steps}
        return [TowerStage(block, proportional=block in self.rows[0].weighted) for block in sorted(blocks)]

    def select_in_tower(self, view: TowerView) -> Choice:
        images = [steps for row in self.rows for steps in row.tower]
        steps = images[view.image] if view.image < len(images) else ()
        found = next((step.selection for step in steps if step.block == view.block), None)
        if found is None or found.n != len(view):
            raise ConfigurationError(
                f"nothing is recorded for image {view.image} before tower block {view.block}; replay the batch that "
                "was recorded, with all its images in one call of the vision tower."
            )
        return found.to(view.device)

    def later(self, layout: Layout, layer: int) -> Later | None:
        removing = tuple(stage.layer for stage in self.rows[0].stages if stage.compact_earlier and stage.layer > layer)
        if not removing:
            return None
        if removing not in layout.memo:  # one object for all layers with the same answer: they share a mask
            layout.memo[removing] = self._hide(layout, removing)
        later: Later = layout.memo[removing]
        return later

    def _hide(self, layout: Layout, removing: tuple[int, ...]) -> Later:
        valid = torch.ones_like(layout.visual) if layout.valid is None else layout.valid
        first = valid.int().argmax(1)
        ends = first + torch.tensor([row.length for row in self.rows[: layout.rows]])
        hidden = torch.zeros_like(layout.visual)
        for group in layout.groups:
            alive = group.visible.cpu()
            for stage in self.rows[group.row].stages:
                selection = self._recorded(group.row, group.image, stage.layer)
                survivors = alive[selection.index.cpu()]
                if stage.layer in removing:
                    gone = torch.ones(group.total, dtype=torch.bool).index_fill_(0, survivors, False)
                    hidden[group.row, group.columns.cpu()[alive[gone[alive]]]] = True
                alive = survivors
        return Later(torch.arange(layout.length)[None] >= ends[:, None], hidden)

    def choose(self, view: View, count: int) -> Choice:
        raise AssertionError("a replay repeats whole choices")

    def select(self, view: View) -> Choice:
        return self._recorded(view.row, view.image, view.layer).to(view.device)

    def _recorded(self, row: int, image: int, layer: int) -> Selection:
        if row >= len(self.rows) or (layer, image) not in self.rows[row].selections:
            raise ConfigurationError(
                f"nothing is recorded for image {image} of row {row} before layer {layer}; replay the batch that "
                "was recorded, with its rows and images in the same order."
            )
        return self.rows[row].selections[layer, image]


def tower_replay(prefill: PrefillTrace) -> Replay | None:
    """What a recorded prefill dropped in the vision tower alone, for passes that end before the language model; None if
    that was nothing."""
    tower = tuple(steps for group in prefill.groups for steps in group.tower)
    if not any(tower):
        return None
    return Replay(rows=(RowChoices((Stage(BEFORE_LLM),), {}, 0, 0, 0, tower=tower),))
