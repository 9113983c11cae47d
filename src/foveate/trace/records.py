"""What was alive where: feeds pictures, benchmarks and tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foveate.core.grid import Grid
from foveate.core.selection import Selection
from foveate.core.timing import Stopwatch
from foveate.core.tower import IN_TOWER


@dataclass(frozen=True)
class Step:
    """One stage applied to one group.

    Attributes:
        layer: stage layer (0 = before the language model, `IN_TOWER` = all stages in the vision tower).
        alive: `[n]` which of the group's tokens survive.
        merged: targets and sources (both as the group's tokens), or None.
        selection: the choice itself, among the tokens that were alive before this stage.
    """

    layer: int
    alive: Tensor
    merged: tuple[Tensor, Tensor] | None
    selection: Selection

    def to_host(self) -> Step:
        cpu = torch.device("cpu")
        merged = None if self.merged is None else (self.merged[0].cpu(), self.merged[1].cpu())
        return Step(self.layer, self.alive.cpu(), merged, self.selection.to(cpu))


@dataclass(frozen=True)
class TowerStep:
    """One stage in the vision tower, of one image.

    Attributes:
        block: tower block before which it selected.
        alive: `[n]` which of the image's tokens survive.
        selection: the choice itself, among the tokens that were alive before this stage.
    """

    block: int
    alive: Tensor
    selection: Selection

    def to_host(self) -> TowerStep:
        cpu = torch.device("cpu")
        return TowerStep(self.block, self.alive.cpu(), self.selection.to(cpu))


@dataclass
class GroupTrace:
    """History of the visual tokens of one image (or of one prompt's images).

    Attributes:
        columns: `[N + e]` their places in the unpruned row of this pass: the grids' tokens, then those beside them.
        visible: `[v]` which of the `N` could be chosen (the attention mask hides the others, or they always stay).
        fixed: `[f]` which of the columns always stay; those from `N` on are newlines, separators and class tokens.
        images: number of grids of every image.
        tower: per image, the stages in the vision tower that dropped or merged anything.
    """

    row: int
    image: int
    grids: tuple[Grid, ...]
    columns: Tensor
    visible: Tensor
    fixed: Tensor
    images: tuple[int, ...] = (1,)
    tower: tuple[tuple[TowerStep, ...], ...] = ()
    steps: list[Step] = field(default_factory=list)

    @property
    def shown(self) -> int:
        """Visual tokens of the unpruned prompt; padding does not count."""
        return len(self.visible) + len(self.fixed)

    def alive_at(self, layer: int) -> Tensor:
        """`[n]` which of the `N` are alive in decoder layer `layer`."""
        alive = self.visible
        for step in self.steps:
            if step.layer <= layer:
                alive = step.alive
        return alive if not len(self.fixed) else torch.cat([alive, self.fixed]).sort().values

    def to_host(self) -> None:
        self.columns, self.visible, self.fixed = self.columns.cpu(), self.visible.cpu(), self.fixed.cpu()
        self.steps = [step.to_host() for step in self.steps]
        self.tower = tuple(tuple(step.to_host() for step in steps) for steps in self.tower)


@dataclass
class PrefillTrace:
    """One prefill: filled while the model runs, read (and copied to the host) afterwards.

    Attributes:
        method: the method as text.
        layers: number of decoder layers.
        notes: what was read otherwise than the method says, and what stood in for a class token.
        kv_bytes: bytes of all key and value tensors right after this prefill (0 without a cache).
        kv_bytes_unpruned: what the same cache would hold with nothing dropped.
        vision, prefill: stopwatches of the tower and of the language model; `tapping` and `selecting` are the shares
            of them that reading the tower and choosing tokens took.
    """

    method: str
    layers: int
    notes: tuple[str, ...] = ()
    rows: int = 0
    past: int = 0
    length: int = 0
    padding: list[int] = field(default_factory=list)
    groups: list[GroupTrace] = field(default_factory=list)
    kv_bytes: int = 0
    kv_bytes_unpruned: int = 0
    selecting: Stopwatch = field(default_factory=Stopwatch)
    prefill: Stopwatch = field(default_factory=Stopwatch)
    vision: Stopwatch = field(default_factory=Stopwatch)
    tapping: Stopwatch = field(default_factory=Stopwatch)

    def record(
        self, layer: int, alive: Sequence[Tensor], survivors: Sequence[Tensor], selections: Sequence[Selection]
    ) -> None:
        """Note a stage: which tokens of each group were alive before and after it, and what was chosen among them."""
        for traced, before, after, selection in zip(self.groups, alive, survivors, selections, strict=True):
            merge = selection.merge
            merged = None if merge is None else (after[merge.entry_target], before[merge.source])
            traced.steps.append(Step(layer, after, merged, selection))

    def to_host(self) -> None:
        """Leave nothing on an accelerator: a trace may live longer than what it is about."""
        for group in self.groups:
            group.to_host()

    # -- reading -----------------------------------------------------------------------------------------

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of the unpruned prompts, all rows."""
        return sum(group.shown for group in self.groups)

    def alive_per_layer(self, row: int | None = None) -> list[int]:
        """Visual tokens alive in each decoder layer, of one row of the batch or of all."""
        groups = [group for group in self.groups if row in (None, group.row)]
        return [sum(len(group.alive_at(layer)) for group in groups) for layer in range(self.layers)]

    @property
    def first_token_ms(self) -> float:
        """Time to first token: the tower, what is read there included, and the language model's prefill."""
        return self.vision.ms + self.prefill.ms

    @property
    def keep_ratio(self) -> float:
        """Average visual tokens per layer over the unpruned number (1.0 without images)."""
        if not self.visual_tokens:
            return 1.0
        return sum(self.alive_per_layer()) / (self.layers * self.visual_tokens)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers. `rows[r]["layers"][l]["positions"]` are the columns of the unpruned row
        (`input_ids[r]`, earlier turns and padding counted) whose visual tokens are alive in layer l; a merged
        token stands at its target's column. `kept` are those alive after the last stage."""
        return {
            "method": self.method,
            "notes": list(self.notes),
            "visual_tokens": self.visual_tokens,
            "alive_per_layer": self.alive_per_layer(),
            "keep_ratio": self.keep_ratio,
            "kv_bytes": self.kv_bytes,
            "kv_bytes_unpruned": self.kv_bytes_unpruned,
            "select_ms": self.selecting.ms,
            "tap_ms": self.tapping.ms,
            "vision_ms": self.vision.ms,
            "prefill_ms": self.prefill.ms,
            "rows": [self._row(row) for row in range(self.rows)],
        }

    def _row(self, row: int) -> dict[str, Any]:
        groups = [group for group in self.groups if group.row == row]
        columns = [(group.columns + self.past).tolist() for group in groups]
        layers: list[dict[str, Any]] = []
        for layer in range(self.layers + 1):  # the last entry: after every stage
            positions: list[int] = []
            for group, own in zip(groups, columns, strict=True):
                positions += [own[i] for i in group.alive_at(layer).tolist()]
            layers.append({"positions": sorted(positions)})
        return {
            "padding": self.padding[row],
            "length": self.past + self.length,
            "images": [
                {"image": group.image, "grids": [list(g) for g in group.grids], "columns": own}
                for group, own in zip(groups, columns, strict=True)
            ],
            "merges": [m for group, own in zip(groups, columns, strict=True) for m in _merges(group, own)],
            "kept": layers.pop()["positions"],
            "layers": layers,
        }


def _merges(group: GroupTrace, columns: list[int]) -> list[dict[str, Any]]:
    found = _tower_merges(group, columns)
    for step in group.steps:
        if step.merged is None:
            continue
        sources: dict[int, list[int]] = {}
        for target, source in zip(*(t.tolist() for t in step.merged), strict=True):
            sources.setdefault(columns[target], []).append(columns[source])
        found += [{"layer": step.layer, "target": t, "sources": s} for t, s in sorted(sources.items())]
    return found


def _tower_merges(group: GroupTrace, columns: list[int]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    start = 0
    for grid, steps in zip(group.grids, group.tower, strict=False):
        before = list(range(start, start + grid.size))
        for step in steps:
            after, merge = [before[i] for i in step.selection.index.tolist()], step.selection.merge
            sources: dict[int, list[int]] = {}
            pairs = [] if merge is None else zip(merge.entry_target.tolist(), merge.source.tolist(), strict=True)
            for target, source in pairs:
                sources.setdefault(columns[after[target]], []).append(columns[before[source]])
            found += [{"layer": IN_TOWER, "target": t, "sources": own} for t, own in sorted(sources.items())]
            before = after
        start += grid.size
    return found
