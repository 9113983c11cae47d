"""The built-in scenes as rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np

from foveate import scenes
from foveate.data.boxes import Box, normalize_boxes
from foveate.data.rows import Row
from foveate.data.videos import Clip
from foveate.errors import DataError


class Scenes(Sequence[Row]):
    """Rows of a split, rendered when they are read; `ids` needs no rendering."""

    def __init__(self, rendered: scenes.Split) -> None:
        self._rendered, self.split = rendered, rendered.name

    @classmethod
    def load(cls, split: str, limit: int | None = None, start: int = 0) -> Self:
        """`limit` rows from row `start` (counted from 0) on.

        Raises:
            DataError: `train`, which has no end, without a limit.
            UnknownSplitError: no such split, or samples beyond its end.
        """
        if split == "train" and limit is None:
            raise DataError("the scenes of scenes:train have no end; say how many to use (--limit)")
        return cls(scenes.load(split, limit, start))

    @property
    def ids(self) -> list[str]:
        return [f"{self.split}:{index}" for index in self._rendered.indices]

    def __len__(self) -> int:
        return len(self._rendered)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Scenes(self._rendered[index])
        sample, number = self._rendered[index], self._rendered.indices[index]
        boxes: list[tuple[Box, ...]] = [() for _ in sample.images]
        width, height = sample.image.size
        boxes[sample.asked] = tuple(map(tuple, normalize_boxes(sample.boxes, "pixel", width=width, height=height)))
        row = Row(
            number=number + 1,
            images=sample.images,
            question=sample.question,
            answers=(sample.answer,),
            boxes=tuple(boxes),
            type=sample.type,
            id=f"{self.split}:{number}",
            source=f"scenes:{self.split}",
            sizes=tuple(image.size for image in sample.images),
        )
        if sample.fps is None:
            return row
        return replace(row, images=(), boxes=None, sizes=(), videos=(clip(sample),))


def clip(sample: scenes.Sample) -> Clip:
    """The video of a sample."""
    frames = np.stack([np.asarray(image) for image in sample.images])
    return Clip(frames, tuple(range(len(frames))), len(frames), sample.fps, f"video {sample.seed}")
