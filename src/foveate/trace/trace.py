"""Everything that happened while a method was in force."""

from __future__ import annotations

from typing import Any

from PIL import Image

from foveate.trace.html import render
from foveate.trace.overlay import overlay
from foveate.trace.records import PrefillTrace
from foveate.trace.text import describe


class Trace:
    """Everything that happened while a method was in force; `prefills` has one entry per pruned prefill.

    Attributes and methods of the last prefill can be read from the trace itself. `notes` say what was read otherwise
    than the method says, because of the model.
    """

    def __init__(self, method: str, layers: int) -> None:
        self.method = method
        self.layers = layers
        self.notes: tuple[str, ...] = ()
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
        return overlay(image, self.last, row, index)

    def __str__(self) -> str:
        return describe(self.last)

    def _repr_html_(self) -> str:
        """The last prefill, as notebooks show it."""
        return render(self.last)

    def __repr__(self) -> str:
        return f"Trace({self.method}, {len(self.prefills)} prefills)"
