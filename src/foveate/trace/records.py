"""What was alive where: feeds pictures, benchmarks and tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from foveate.core.grid import Grid
from foveate.core.selection import Selection
from foveate.core.timing import Stopwatch
from foveate.engine.cache import FoveatedCache
from foveate.engine.layout import Group, Layout

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Step:
    """One stage applied to one group.

    Attributes:
        layer: stage layer (0 = before the language model).
        alive: `[n]` which of the group's tokens survive.
        merged: targets and sources (both as the group's tokens), or None.
        selection: the choice itself, among the tokens that were alive before this stage.
    """

    layer: int
    alive: Tensor
    merged: tuple[Tensor, Tensor] | None
    selection: Selection


@dataclass
class GroupTrace:
    """History of the visual tokens of one image (or of one prompt's images)."""

    row: int
    image: int
    grids: tuple[Grid, ...]
    columns: Tensor
    steps: list[Step] = field(default_factory=list)

    def alive_at(self, layer: int) -> Tensor | None:
        """`[n]` tokens alive in decoder layer `layer`; None means all of them."""
        alive = None
        for step in self.steps:
            if step.layer <= layer:
                alive = step.alive
        return alive


@dataclass
class PrefillTrace:
    """One prefill: filled while the model runs, read (and copied to the host) afterwards.

    Attributes:
        method: the method as text.
        layers: number of decoder layers.
        kv_bytes: bytes of all key and value tensors right after this prefill (0 without a cache).
        kv_bytes_unpruned: what the same cache would hold with nothing dropped.
        vision, prefill: stopwatches of the tower and of the language model; `tapping` and `selecting` are the shares
            of them that reading the tower and choosing tokens took.
    """

    method: str
    layers: int
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

    def begin(self, layout: Layout) -> None:
        self.rows, self.past, self.length = layout.rows, layout.past, layout.length
        self.padding = [layout.length - count for count in layout.counts()]
        self.groups = [GroupTrace(g.row, g.image, g.grids, g.columns) for g in layout.groups]

    def record(self, layer: int, groups: Sequence[Group], selections: Sequence[Selection]) -> None:
        """Note a stage; called before the groups are updated."""
        for traced, group, selection in zip(self.groups, groups, selections, strict=True):
            alive = group.alive[selection.index]
            merge = selection.merge
            merged = None if merge is None else (alive[merge.target], group.alive[merge.source])
            traced.steps.append(Step(layer, alive, merged, selection))

    def end(self, cache: FoveatedCache | None) -> None:
        if cache is None:
            return
        self.kv_bytes = cache.nbytes()
        total = cache.get_seq_length()
        for number, layer in enumerate(cache.layers):
            if layer.keys is not None and layer.values is not None:
                columns = max(cache.physical_length(number), 1)
                both = sum(t.numel() * t.element_size() for t in (layer.keys, layer.values))
                self.kv_bytes_unpruned += both // columns * total

    # -- reading -----------------------------------------------------------------------------------------

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of the unpruned prompts, all rows."""
        return sum(len(group.columns) for group in self.groups)

    def alive_per_layer(self, row: int | None = None) -> list[int]:
        """Visual tokens alive in each decoder layer, of one row of the batch or of all."""
        groups = [group for group in self.groups if row in (None, group.row)]
        return [
            sum(len(group.columns if (a := group.alive_at(layer)) is None else a) for group in groups)
            for layer in range(self.layers)
        ]

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
                alive = group.alive_at(layer)
                positions += own if alive is None else [own[i] for i in alive.tolist()]
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
    found = []
    for step in group.steps:
        if step.merged is None:
            continue
        sources: dict[int, list[int]] = {}
        for target, source in zip(*(t.tolist() for t in step.merged), strict=True):
            sources.setdefault(columns[target], []).append(columns[source])
        found += [{"layer": step.layer, "target": t, "sources": s} for t, s in sorted(sources.items())]
    return found


class Trace:
    """Everything that happened while a method was in force; `prefills` has one entry per pruned prefill.

    Attributes and methods of the last prefill can be read from the trace itself.
    """

    def __init__(self, method: str, layers: int) -> None:
        self.method = method
        self.layers = layers
        self.prefills: list[PrefillTrace] = []

    @property
    def last(self) -> PrefillTrace:
        """The latest prefill (an empty one before the first)."""
        return self.prefills[-1] if self.prefills else PrefillTrace(self.method, self.layers)

    @property
    def kv_bytes(self) -> int:
        return self.last.kv_bytes

    @property
    def keep_ratio(self) -> float:
        return self.last.keep_ratio

    def to_dict(self) -> dict[str, Any]:
        return self.last.to_dict()

    def overlay(self, image: Image.Image, row: int = 0, index: int = 0) -> Image.Image:
        """Picture of what was kept of the `index`-th image of `row` in the last prefill."""
        from foveate.trace.overlay import overlay

        return overlay(image, self.last, row, index)

    def __str__(self) -> str:
        from foveate.trace.text import describe

        return describe(self.last)

    def __repr__(self) -> str:
        return f"Trace({self.method}, {len(self.prefills)} prefills)"
