"""What a KV cache must know of its conversation: which images it has seen, and where positions go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageSpan:
    """One image or video in one row.

    Attributes:
        start, end: logical columns of its placeholders, padding and earlier turns counted.
        offset: M-RoPE: position of the text behind it minus the number of real tokens before that text.
        pieces: feature tensors that it came as: one, or one per tile.
    """

    start: int
    end: int
    offset: int = 0
    pieces: int = 1


@dataclass(frozen=True)
class PrefillRecord:
    """What one prefill brought into one row.

    Attributes:
        start, end: logical columns that it covers.
        images: in reading order.
    """

    start: int
    end: int
    images: tuple[ImageSpan, ...]

    def cropped(self, length: int) -> PrefillRecord | None:
        """What is left of it in a conversation of `length` tokens; an image cut in two is forgotten."""
        if self.start >= length:
            return None
        images = tuple(image for image in self.images if image.end <= length)
        return replace(self, end=min(self.end, length), images=images)

    def shifted(self, by: int) -> PrefillRecord:
        """The same behind `by` more columns of padding."""
        images = tuple(replace(image, start=image.start + by, end=image.end + by) for image in self.images)
        return replace(self, start=self.start + by, end=self.end + by, images=images)


@dataclass
class Conversation:
    """The records of every row of a batch, oldest first. All cache operations act on it.

    Attributes:
        mrope: whether text positions are to be moved by an offset (0 before the first image).
    """

    rows: list[list[PrefillRecord]] = field(default_factory=list)
    mrope: bool = False
    _offsets: dict[torch.device, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def add(self, records: Sequence[PrefillRecord]) -> None:
        """One more prefill, a record per row."""
        if not self.rows:
            self.rows = [[] for _ in records]
        for row, record in zip(self.rows, records, strict=True):
            row.append(record)
        self._offsets.clear()

    def images(self) -> list[int] | None:
        """Feature tensors of images (or of their tiles) seen by each row; None before the first prefill."""
        if not self.rows:
            return None
        return [sum(image.pieces for record in row for image in record.images) for row in self.rows]

    @property
    def is_known(self) -> bool:
        """Whether anything was recorded."""
        return self.mrope or bool(self.rows)

    def offsets(self, device: torch.device) -> Tensor:
        """`[B | 1, 1]` position of a new text token minus the number of real tokens before it."""
        if device not in self._offsets:
            last = [[image.offset for record in row for image in record.images] for row in self.rows]
            numbers = [[found[-1] if found else 0] for found in last] or [[0]]
            self._offsets[device] = torch.tensor(numbers, device=device)
        return self._offsets[device]

    # -- what cache operations do to it ------------------------------------------------------------------

    def crop(self, length: int) -> None:
        """Forget everything from logical column `length` on."""
        self._change([[c for r in row if (c := r.cropped(length)) is not None] for row in self.rows])

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be named more than once."""
        if self.rows:
            self._change([list(self.rows[row]) for row in rows])

    def repeat(self, times: int) -> None:
        """Every row `times` times in a row."""
        self._change([list(row) for row in self.rows for _ in range(times)])

    def shift(self, by: int) -> None:
        """All rows get `by` more columns of padding in front (fewer if negative)."""
        if by:
            self._change([[record.shifted(by) for record in row] for row in self.rows])

    def join(self, others: Sequence[Conversation]) -> None:
        """Append the rows of other conversations."""
        self._change([*self.rows, *(list(row) for other in others for row in other.rows)])

    def clear(self) -> None:
        self._change([])

    def _change(self, rows: list[list[PrefillRecord]]) -> None:
        self.rows = rows
        self._offsets.clear()
