"""Which tokens of which row belong to which image. Built once per prefill, on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foveate.core.budget import Per
from foveate.core.grid import Grid
from foveate.core.view import Tap
from foveate.errors import InputError
from foveate.families.layout import ImageShape
from foveate.trace.records import TowerStep

Integers = npt.NDArray[np.int64]
Left = tuple[TowerStep, ...]
"""What the tower did to an image, nothing if it left everything."""


@dataclass
class TowerImage:
    """One image (or tile, or frame) in a call of the tower: its grid in tokens, what taps read `[h * w, ...]`."""

    grid: Grid
    taps: dict[Tap, Tensor]
    left: Left = ()


@dataclass
class EncodedImage:
    """One image as the language model sees it, with what the taps read in the tower.

    Attributes:
        shape: how its tokens lie in the language model.
        taps: `[N, ...]` each, for the tokens of its grids.
        pieces: feature tensors that it is made of: its tiles, where each has one.
        left: what the tower left of it; None: it was encoded outside of this pruning.
    """

    shape: ImageShape
    taps: dict[Tap, Tensor]
    pieces: int = 1
    left: Left | None = None

    @property
    def size(self) -> int:
        return self.shape.size

    @property
    def columns_first(self) -> Integers:
        """`[size]` its tokens, those of the grids first, then those that always stay."""
        fixed = np.array(self.shape.fixed, dtype=np.int64)
        return np.concatenate([np.setdiff1d(np.arange(self.size), fixed), fixed])


@dataclass
class Group:
    """The visual tokens that a method looks at together: an image, or all images of a row.

    Attributes:
        row: row of the batch.
        image: index of the first image within the row (of this forward pass).
        grids: the grids of its images, several for an image in tiles.
        images: number of grids of every image.
        columns: `[N + e]` their places in the unpruned rows of this forward pass: the `N` tokens of the grids, then `e`
            newlines, separators and class tokens.
        taps: vision-tower readings, `[N, ...]` each.
        visible: `[v]` which of the `N` a method may choose among: not those that the attention mask hides, which are
            padding, nor those that always stay.
        fixed: `[f]` which of the `N + e` always stay: those behind the `N`, and the prompt's last token, from which the
            answer is predicted.
        alive: `[n]` which of the visible ones are alive now.
        across: tiles side by side in every image, None if unknown.
        left: per image, what the tower left of it.
        sizes: `[N]` float32, how many tokens each of those alive stands for; None: one each.
        memo: the method's scratch space.
    """

    row: int
    image: int
    grids: tuple[Grid, ...]
    columns: Tensor
    taps: dict[Tap, Tensor]
    visible: Tensor
    fixed: Tensor
    alive: Tensor
    images: tuple[int, ...] = (1,)
    across: tuple[int | None, ...] = (None,)
    left: tuple[Left | None, ...] = ()
    sizes: Tensor | None = None
    memo: dict[Any, Any] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(grid.size for grid in self.grids)

    @property
    def standing(self) -> int:
        """Visual tokens of this group in the sequence now."""
        return len(self.alive) + len(self.fixed)


@dataclass
class Layout:
    """The unpruned batch of one forward pass.

    Attributes:
        length: tokens per row, padding and probe tokens included.
        past: logical tokens that were in the cache before.
        visual: `[B, length]` bool on the host: placeholders, hidden ones included.
        valid: `[B, length]` bool on the host, or None if nothing is padding.
        groups: all groups of all rows in which something can be chosen.
        others: per row, columns of the real tokens that are in no group or always stay.
        spans: per row, (first, past the last) column of every image.
        pieces: per row, feature tensors of every image.
        memo: scratch space of the method.
    """

    length: int
    past: int
    visual: Tensor
    valid: Tensor | None
    groups: list[Group]
    others: list[Integers] = field(default_factory=list)
    spans: list[list[tuple[int, int]]] = field(default_factory=list)
    pieces: list[list[int]] = field(default_factory=list)
    memo: dict[Any, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return self.visual.shape[0]

    def counts(self) -> list[int]:
        """Number of real tokens of every row."""
        return [self.length] * self.rows if self.valid is None else self.valid.sum(1).tolist()


def build_layout(
    visual: Mapping[str, Tensor],
    valid: Tensor | None,
    images: Mapping[str, Sequence[EncodedImage]],
    past: int,
    per: Per,
    device: torch.device,
) -> Layout:
    """Distribute the encoded images over the placeholder tokens, in reading order.

    Args:
        visual: per modality, `[B, n]` bool on the host, True on its placeholders.
        valid: `[B, n]` bool on the host or None.
        images: per modality, in the order in which their placeholders occur, row by row.

    Raises:
        InputError: if the placeholders are not exactly the images' tokens.
    """
    owners = {
        modality: assign(modality, mask, [image.size for image in images.get(modality, ())])
        for modality, mask in visual.items()
    }
    masks = list(visual.values())
    union = masks[0] if len(masks) == 1 else torch.stack(masks).any(0)
    layout = Layout(union.shape[1], past, union, valid, [])
    for row in range(union.shape[0]):
        found: list[tuple[Integers, EncodedImage]] = []
        for modality, mask in visual.items():
            own = [images[modality][number] for number in owners[modality][row]]
            columns, start = np.flatnonzero(mask[row].numpy()), 0
            for image in own:
                found.append((columns[start : start + image.size], image))
                start += image.size
        found.sort(key=lambda pair: int(pair[0][0]))
        layout.spans.append([(int(columns[0]), int(columns[-1]) + 1) for columns, _ in found])
        layout.pieces.append([image.pieces for _, image in found])
        layout.groups += _row_groups(layout, row, found, per, device)
    return layout


def assign(modality: str, mask: Tensor, sizes: Sequence[int]) -> list[list[int]]:
    """Numbers of the images of every row: rows are filled one after the other.

    Args:
        mask: `[B, n]` bool on the host, the placeholders.
        sizes: tokens of every image.

    Raises:
        InputError: a row cannot be filled exactly, or images are left over.
    """
    rows, number = [], 0
    for row, left in enumerate(mask.numpy().sum(1).tolist()):
        own = []
        while left > 0:
            if number == len(sizes) or sizes[number] > left:
                raise placeholder_mismatch(modality, mask, sizes, row)
            own.append(number)
            left -= sizes[number]
            number += 1
        rows.append(own)
    if number < len(sizes):
        raise placeholder_mismatch(modality, mask, sizes, None)
    return rows


def placeholder_mismatch(modality: str, mask: Tensor, sizes: Sequence[int], row: int | None) -> InputError:
    title = modality.capitalize()
    where = "" if row is None else f" (row {row} cannot be filled)"
    if len(sizes) == 1 and int(mask.sum()) == sizes[0] and int(mask.any(1).sum()) > 1:
        return InputError(
            f"{title} features and {modality} tokens do not match row by row{where}: the features of several rows "
            "came in one piece. Chunked prefill (`prefill_chunk_size`) cannot be pruned; leave it unset."
        )
    return InputError(
        f"{title} features and {modality} tokens do not match: the prompt has {int(mask.sum())} {modality} placeholder "
        f"tokens, but {len(sizes)} {modality}(s) were given that make {sum(sizes)} visual tokens {list(sizes)}{where}. "
        f"Put one {modality} marker per {modality} into the prompt and let the processor expand it."
    )


def _row_groups(
    layout: Layout, row: int, found: Sequence[tuple[Integers, EncodedImage]], per: Per, device: torch.device
) -> list[Group]:
    bundles = [found] if per == "prompt" and found else [[pair] for pair in found]
    shown = np.ones(layout.length, bool) if layout.valid is None else layout.valid[row].numpy()
    last, others = max(np.flatnonzero(shown), default=-1), shown.copy()
    groups: list[Group] = []
    for number, bundle in enumerate(bundles):
        encoded = [image for _, image in bundle]
        ordered = [own[image.columns_first] for own, image in bundle]
        chosen = [len(own) - len(image.shape.fixed) for own, image in bundle]
        columns = np.concatenate(
            [own[:n] for own, n in zip(ordered, chosen, strict=True)]
            + [own[n:] for own, n in zip(ordered, chosen, strict=True)]
        )
        taps = encoded[0].taps
        if len(encoded) > 1:
            taps = {tap: torch.cat([image.taps[tap] for image in encoded]) for tap in taps}
        stays = (columns == last) | (np.arange(len(columns)) >= sum(chosen))
        free, fixed = np.flatnonzero(shown[columns] & ~stays), np.flatnonzero(shown[columns] & stays)
        if len(free):
            grids = tuple(grid for image in encoded for grid in image.shape.grids)
            counts = tuple(len(image.shape.grids) for image in encoded)
            across = tuple(image.shape.across for image in encoded)
            left = tuple(image.left for image in encoded)
            others[columns[free]] = False
            places, visible, always = (torch.from_numpy(own).to(device) for own in (columns, free, fixed))
            groups.append(Group(row, number, grids, places, taps, visible, always, visible, counts, across, left))
    layout.others.append(np.flatnonzero(others))
    return groups
