"""DeepSeek-OCR 2: learned queries read a tile each, in an order of their own; a separator behind the last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from foveate.core.grid import Grid, Unplaced
from foveate.families.base import Family
from foveate.families.layout import ImageShape


class DeepseekOcr2(Family):
    """Tiles come first, the whole picture last. The separator always stays."""

    model_types = ("deepseek_ocr2",)

    def shape(self, modality: str, size: int, grids: Sequence[Grid], features: Tensor | None = None) -> ImageShape:
        tower: Any = self.parts.tower
        tile, whole = (len(tower.get_submodule(f"query_{side}_resolution").weight) for side in (768, 1024))
        last = whole if (size - 1 - whole) % tile == 0 and size > whole else tile
        count = (size - 1 - last) // tile
        return ImageShape((*(Unplaced(1, 1, tile),) * count, Unplaced(1, 1, last)), (size - 1,))
