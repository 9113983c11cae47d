"""Aya Vision: its pixel shuffle turns rows into columns."""

from __future__ import annotations

from typing import Any

from foveate.core.grid import ColumnGrid, Grid
from foveate.families.base import Family


class AyaVision(Family):
    """Tokens of a tile run down its columns."""

    model_types = ("aya_vision",)

    def tower_grids(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Grid]:
        return [ColumnGrid(*grid) for grid in super().tower_grids(args, kwargs)]
