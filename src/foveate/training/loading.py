"""How rows come to a trainer: workers that prepare images meanwhile, batches of prompts of similar length."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from foveate.data.rendered import Scenes
from foveate.data.rows import Row, Rows

MOST_WORKERS = 4


def default_workers() -> int:
    """Processes that prepare batches beside each training process.

    One less than the processors that each training process has, none where processes cannot be forked (then each would
    get a copy of the model).
    """
    if multiprocessing.get_start_method() != "fork":
        return 0
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(MOST_WORKERS, usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


def extents(rows: Sequence[Row]) -> list[int] | None:
    """For each row a number that grows with its prompt: pixels in units of a token of 28 x 28, and letters of text.

    None for rendered scenes, whose images nobody has seen yet, and for videos.
    """
    if isinstance(rows, Rows) and isinstance(rows.items, Scenes):
        return None
    found = [_extent(row) for row in rows]
    return [one for one in found if one is not None] if None not in found else None


def _extent(row: Row) -> int | None:
    if row.videos or len(row.sizes) < len(row.images):
        return None
    return sum(width * height // 784 for width, height in row.sizes) + (len(row.question) + len(row.answer or "")) // 4


class LengthBuckets(Sampler[int]):
    """Rows in an order in which batches hold prompts of similar length; another one each epoch, given by a seed.

    The order depends on nothing else, so that a resumed run and every process go through the same.

    Args:
        lengths: of the rows.
        size: rows that are taken together, over all processes.
    """

    def __init__(self, lengths: Sequence[int], size: int, seed: int) -> None:
        self.lengths, self.size, self.seed, self.epoch = list(lengths), size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        found: list[int] = get_length_grouped_indices(self.lengths, self.size, generator=generator)
        return iter(found)
