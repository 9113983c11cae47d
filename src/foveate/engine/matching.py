"""Which image every placeholder belongs to: features given ahead, readings of the tower and runs of tokens compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from foveate.core.grid import Grid
from foveate.engine.call import Call
from foveate.engine.layout import EncodedImage, TowerImage, assign
from foveate.errors import InputError
from foveate.families.base import Family
from foveate.families.layout import ImageShape


@dataclass(frozen=True)
class _Pieces:
    """Feature tensors of one modality that stand in a call.

    Attributes:
        sizes: tokens of each.
        source: which of the encoded ones it is (beams and several sequences repeat them).
        encoded: tokens of each encoded one.
        shapes: of each encoded one, where arguments tell.
    """

    sizes: list[int]
    source: list[int]
    encoded: list[int]
    shapes: list[ImageShape] | None = None


def match_images(family: Family, call: Call, encoded: Sequence[TowerImage]) -> dict[str, list[EncodedImage]]:
    """The images of a call, per modality in the order of their placeholders.

    Sizes come from features that were computed ahead, else from the call's arguments, else from the tower, else from
    the runs of placeholders.

    Args:
        encoded: what the tower encoded lately, in that order.

    Raises:
        InputError: features that do not fit what the tower encoded.
    """
    pieces = {m: _pieces(family, m, call, encoded) for m in call.visual if m in call.given}
    grids = [image.grid for image in encoded]
    counts = {m: sum(family.tower_images(m, size, grids) for size in found.encoded) for m, found in pieces.items()}
    total = sum(counts.values())
    recent = list(encoded[len(encoded) - total :]) if total <= len(encoded) else []
    result: dict[str, list[EncodedImage]] = {}
    for modality, found in pieces.items():
        own, recent = recent[: counts[modality]], recent[counts[modality] :]
        images = _encoded(family, modality, found, own)
        own_images = [images[i] for i in found.source]
        result[modality] = own_images
        if family.in_tiles(modality):
            result[modality] = _joined(call.visual[modality], call.ids, own_images, modality == "video")
    return result


def _pieces(family: Family, modality: str, call: Call, encoded: Sequence[TowerImage]) -> _Pieces:
    mask = call.visual[modality]
    total = int(mask.numpy().sum())
    if modality in call.features:
        return _given_ahead(call, modality, mask, encoded)
    shapes = call.incoming.get(modality)
    if shapes is not None:  # encoded in this call, which got the fresh ones only
        shapes = [shapes[i] for i in call.fresh[modality]]
        sizes = [shape.size for shape in shapes]
        return _Pieces(sizes, list(range(len(sizes))), sizes, shapes)
    for number in range(1, len(encoded) + 1):
        sizes = [image.grid.size for image in encoded[-number:]]
        if sum(sizes) == total:
            return _Pieces(sizes, list(range(number)), sizes)
    sizes = [length for row in mask for length in runs(row)]
    return _Pieces(sizes, list(range(len(sizes))), sizes)


def _given_ahead(call: Call, modality: str, mask: Tensor, encoded: Sequence[TowerImage]) -> _Pieces:
    """`generate` repeats the same feature tensors for beams and several return sequences, or stacks copies of them."""
    features = call.features[modality]
    order: dict[int, int] = {}
    for feature in features:
        order.setdefault(id(feature), len(order))
    sizes = [len(feature) for feature in features]
    if len(order) < len(features):
        source = [order[id(feature)] for feature in features]
        distinct = [len(features[source.index(number)]) for number in range(len(order))]
    elif encoded and len(features) > len(encoded) and len(features) % len(encoded) == 0:
        source = _copies(modality, mask, sizes, len(features) // len(encoded))
        distinct = [sizes[source.index(number)] for number in range(max(source) + 1)]
    else:
        source, distinct = list(range(len(features))), sizes
    fresh = call.fresh[modality]
    return _Pieces([sizes[i] for i in fresh], [source[i] for i in fresh], distinct)


def _copies(modality: str, mask: Tensor, sizes: list[int], times: int) -> list[int]:
    """Of every copy its original, where the images of each row stand there `times` times."""
    source: list[int] = []
    count = 0
    for number, row in enumerate(assign(modality, mask, sizes)):
        if number % times == 0:
            first, count = count, count + len(row)
        source += range(first, first + len(row))
    return source


def _encoded(family: Family, modality: str, found: _Pieces, own: Sequence[TowerImage]) -> list[EncodedImage]:
    """What the tower encoded, as images in the language model."""
    result, start = [], 0
    for number, size in enumerate(found.encoded):
        tiles = own[start : start + family.tower_images(modality, size, [tile.grid for tile in own])]
        start += len(tiles)
        grids = [tile.grid for tile in tiles]
        shape = found.shapes[number] if found.shapes else family.shape(modality, size, grids)
        if shape.size != size:
            raise InputError(
                f"An image of {shape.size} visual tokens arrived with {size} {modality} features. "
                "Chunked prefill (`prefill_chunk_size`) cannot be pruned; leave it unset."
            )
        taps = {
            tap: family.join(shape, grids, [tile.taps[tap] for tile in tiles])
            for tap in (tiles[0].taps if tiles else ())
        }
        left = tiles[0].left if len(tiles) == 1 else None  # no tower that takes tiles can be pruned
        result.append(EncodedImage(shape, taps, left=left))
    return result


def _joined(mask: Tensor, ids: Tensor | None, pieces: Sequence[EncodedImage], frames: bool) -> list[EncodedImage]:
    """Tiles (or frames) that belong to one image (or video) as one.

    The token in front of the last run of a row says that an image ends with that run, as do all runs behind such a one.
    """
    if ids is None or not pieces:
        return list(pieces)
    before = _before_runs(mask, ids)
    closing = {
        int(row[row_mask.nonzero()[-1]]) for row, row_mask in zip(before, mask, strict=True) if bool(row_mask.any())
    }
    groups: list[list[EncodedImage]] = []
    starts: list[list[int]] = []
    rows = assign("image", mask, [piece.size for piece in pieces])
    for number, own in enumerate(rows):
        columns, closed = mask[number].nonzero().squeeze(1), True
        start, last_run = 0, -1
        for i in own:
            column = int(columns[start])
            run = int(_run_start(mask[number], column))
            if closed and run != last_run:
                groups.append([])
                starts.append([])
            groups[-1].append(pieces[i])
            starts[-1].append(column)
            closed, last_run = int(before[number, column]) in closing, run
            start += pieces[i].size
    return [_one(group, frames, _across(own)) for group, own in zip(groups, starts, strict=True)]


def _across(starts: Sequence[int]) -> int | None:
    """Tiles side by side, where something more stands behind a row of tiles than between two: the whole picture is the
    last. None if nothing tells."""
    steps = [after - before for before, after in pairwise(starts[:-1])]
    longer = [number for number, step in enumerate(steps) if step > min(steps)]
    if not longer:
        return len(starts) - 1 if steps and starts[-1] - starts[-2] > steps[0] else None
    return longer[0] + 1 if (len(starts) - 1) % (longer[0] + 1) == 0 else None


def _one(pieces: Sequence[EncodedImage], frames: bool, across: int | None) -> EncodedImage:
    if len(pieces) == 1:
        return pieces[0]
    fixed: list[int] = []
    start = 0
    for piece in pieces:
        fixed += [start + place for place in piece.shape.fixed]
        start += piece.size
    grids = tuple(grid for piece in pieces for grid in piece.shape.grids)
    if frames and len(set(grids)) == 1:
        grids = (Grid(sum(grid.t for grid in grids), *grids[0][1:]),)
    shape = ImageShape(grids, tuple(fixed), across)
    taps = {tap: torch.cat([piece.taps[tap] for piece in pieces]) for tap in pieces[0].taps}
    return EncodedImage(shape, taps, len(pieces))


def runs(row: Tensor) -> list[int]:
    """Lengths of the runs of True in `[n]`."""
    edges = torch.nn.functional.pad(row.int(), (1, 1)).diff()
    return ((edges == -1).nonzero() - (edges == 1).nonzero()).squeeze(1).tolist()


def _run_start(row: Tensor, column: int) -> int:
    gaps = (~row[:column]).nonzero()
    return int(gaps[-1]) + 1 if len(gaps) else 0


def _before_runs(mask: Tensor, ids: Tensor) -> Tensor:
    """`[B, n]` for every placeholder the id in front of its run, -1 at the beginning of a row."""
    shifted = torch.nn.functional.pad(ids, (1, 0), value=-1)[:, :-1]
    first = mask & ~torch.nn.functional.pad(mask, (1, 0))[:, :-1]
    places = torch.where(first, torch.arange(mask.shape[1]), 0).cummax(1).values
    return shifted.gather(1, places)
