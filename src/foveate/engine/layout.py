"""Which tokens of which row belong to which image. Built once per prefill, on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foveate.core.budget import Per
from foveate.core.grid import Grid
from foveate.core.method import Tap
from foveate.errors import InputError


@dataclass
class EncodedImage:
    """One image that went through the vision tower, with what the taps read there."""

    grid: Grid
    taps: dict[Tap, Tensor]


@dataclass
class Group:
    """The visual tokens that a method looks at together: an image, or all images of a row.

    Attributes:
        row: row of the batch.
        image: index of the first image within the row (of this forward pass).
        grids: one grid per image.
        columns: `[N]` their places in the unpruned rows of this forward pass.
        taps: vision-tower readings, `[N, ...]` each.
        alive: `[n]` which of the `N` are alive now.
        memo: the method's scratch space.
    """

    row: int
    image: int
    grids: tuple[Grid, ...]
    columns: Tensor
    taps: dict[Tap, Tensor]
    alive: Tensor
    memo: dict[str, Any] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return self.columns.shape[0]


@dataclass
class Layout:
    """The unpruned batch of one forward pass.

    Attributes:
        length: tokens per row, padding included.
        past: logical tokens that were in the cache before.
        visual: `[B, length]` bool on the host.
        valid: `[B, length]` bool on the host, or None if nothing is padding.
        groups: all groups of all rows.
        memo: scratch space of the method.
    """

    length: int
    past: int
    visual: Tensor
    valid: Tensor | None
    groups: list[Group]
    memo: dict[Any, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return self.visual.shape[0]

    def images_per_row(self) -> Tensor:
        """`[B]` number of images in each row."""
        counts = torch.zeros(self.rows, dtype=torch.long)
        for group in self.groups:
            counts[group.row] += len(group.grids)
        return counts

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
        modality: assign(modality, mask, [image.grid.size for image in images.get(modality, ())])
        for modality, mask in visual.items()
    }
    groups: list[Group] = []
    for row in range(next(iter(visual.values())).shape[0]):
        found: list[tuple[Tensor, EncodedImage]] = []
        for modality, mask in visual.items():
            own = [images[modality][number] for number in owners[modality][row]]
            columns = mask[row].nonzero().squeeze(1).split([image.grid.size for image in own])
            found += zip(columns, own, strict=True)
        found.sort(key=lambda pair: int(pair[0][0]))
        groups += _row_groups(row, found, per, device)
    union = torch.stack(list(visual.values())).any(0)
    return Layout(union.shape[1], past, union, valid, groups)


def assign(modality: str, mask: Tensor, sizes: Sequence[int]) -> list[list[int]]:
    """Numbers of the images of every row: rows are filled one after the other.

    Args:
        mask: `[B, n]` bool on the host, the placeholders.
        sizes: tokens of every image.

    Raises:
        InputError: a row cannot be filled exactly, or images are left over.
    """
    rows, number = [], 0
    for row, left in enumerate(mask.sum(1).tolist()):
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
    where = "" if row is None else f" (row {row} cannot be filled)"
    return InputError(
        f"The prompt has {int(mask.sum())} {modality} placeholder tokens, but {len(sizes)} {modality}(s) were given "
        f"that make {sum(sizes)} visual tokens {sizes}{where}. Put one {modality} marker per {modality} into the "
        "prompt and let the processor expand it."
    )


def _row_groups(row: int, found: Sequence[tuple[Tensor, EncodedImage]], per: Per, device: torch.device) -> list[Group]:
    bundles = [found] if per == "prompt" and found else [[pair] for pair in found]
    groups: list[Group] = []
    for number, bundle in enumerate(bundles):
        columns = torch.cat([own for own, _ in bundle]).to(device)
        encoded = [image for _, image in bundle]
        taps = {tap: torch.cat([image.taps[tap] for image in encoded]) for tap in encoded[0].taps}
        grids = tuple(image.grid for image in encoded)
        groups.append(Group(row, number, grids, columns, taps, torch.arange(len(columns), device=device)))
    return groups
