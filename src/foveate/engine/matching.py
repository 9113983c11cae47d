"""Which image every placeholder belongs to: features given ahead, readings of the tower and runs of tokens compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise

import torch
from torch import Tensor

from foveate.core.grid import Grid
from foveate.engine.call import Call
from foveate.engine.layout import EncodedImage, TowerImage, assign
from foveate.errors import InputError, MissingTapError
from foveate.families.base import Family
from foveate.families.layout import ImageShape, shape_of_runs

MARKS = 2
"""The marks that end a frame and begin the next one, where each has some."""


@dataclass(frozen=True)
class _Pieces:
    """Feature tensors of one modality that stand in a call.

    Attributes:
        sizes: tokens of each.
        source: which of the encoded ones it is (beams and several sequences repeat them).
        encoded: tokens of each encoded one.
        shapes: of each encoded one, where arguments tell.
        features: each encoded one, where they were given ahead.
    """

    sizes: list[int]
    source: list[int]
    encoded: list[int]
    shapes: list[ImageShape] | None = None
    features: list[Tensor] | None = None

    def shape(self, family: Family, modality: str, number: int, grids: Sequence[Grid] = ()) -> ImageShape:
        """How the tokens of an encoded one lie.

        Args:
            grids: of the tower's images that made it, empty if unknown.
        """
        if self.shapes:
            return self.shapes[number]
        features = self.features[number] if self.features else None
        return family.shape(modality, self.encoded[number], grids, features)


def match_images(family: Family, call: Call, calls: Sequence[Sequence[TowerImage]]) -> dict[str, list[EncodedImage]]:
    """The images of a call, per modality in the order of their placeholders.

    Sizes come from features that were computed ahead, else from the call's arguments, else from the tower, else from
    the runs of placeholders.

    Args:
        calls: what the tower encoded lately in each of its calls, in that order.

    Raises:
        InputError: features that do not fit what the tower encoded.
        MissingTapError: several ways to tell which tiles were read for which image.
    """
    encoded = [image for images in calls for image in images]
    pieces = {m: _pieces(family, m, call, encoded) for m in call.visual if m in call.given}
    shapes = {m: [found.shape(family, m, n) for n in range(len(found.encoded))] for m, found in pieces.items()}
    shares = _shares(family, shapes, calls)
    result: dict[str, list[EncodedImage]] = {}
    for modality, found in pieces.items():
        images = _encoded(family, modality, found, shapes[modality], shares[modality])
        own_images = [images[i] for i in found.source]
        mask, video = call.visual[modality], modality == "video"
        if family.in_tiles(modality):
            own_images = _joined(mask, call.ids, own_images, video)
        elif any(image.shape.guessed for image in own_images):
            own_images = _laid_out(mask, own_images, video)
        result[modality] = own_images
    return result


def _shares(
    family: Family, shapes: dict[str, list[ImageShape]], calls: Sequence[Sequence[TowerImage]]
) -> dict[str, list[list[TowerImage]]]:
    """Per modality and encoded feature tensor the tower's images that made it; empty ones where nothing fits."""
    encoded = [image for images in calls for image in images]
    order = [(modality, shape) for modality, found in shapes.items() for shape in found]
    counts = _counts(family, order, [image.grid for image in encoded], [len(images) for images in calls])
    if len(counts) > 1 and any(image.taps for image in encoded):
        raise MissingTapError(
            f"Which tiles of '{family.name}' were read for which image cannot be told: {counts[0]} or "
            f"{counts[1]} tiles would both fit. Ask about one image at a time, or use a method that needs no taps."
        )
    chosen = counts[0] if counts else (0,) * len(order)
    own = iter(encoded[len(encoded) - sum(chosen) :])
    result: dict[str, list[list[TowerImage]]] = {modality: [] for modality in shapes}
    for (modality, _), n in zip(order, chosen, strict=True):
        result[modality].append(list(islice(own, n)))
    return result


def _counts(
    family: Family, order: Sequence[tuple[str, ImageShape]], grids: Sequence[Grid], calls: Sequence[int]
) -> list[tuple[int, ...]]:
    """How many of the tower's latest images each feature tensor is made of: the ways that begin with a call of the
    tower, else one that does not; two at most.

    Args:
        calls: images in each call of the tower.
    """
    ways: dict[int, list[tuple[int, ...]]] = {len(grids): [()]}
    for modality, shape in reversed(order):
        longer: dict[int, list[tuple[int, ...]]] = {}
        for end, found in ways.items():
            for n in family.tower_counts(modality, shape, grids[:end]):
                if n <= end:
                    longer.setdefault(end - n, []).extend((n, *way) for way in found)
        ways = {start: found[:2] for start, found in longer.items()}
    starts = set(accumulate(calls, initial=0))
    whole = [way for start, found in ways.items() if start in starts for way in found]
    return whole[:2] or [way for found in ways.values() for way in found][:1]


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
    elif encoded and len(features) > len(encoded) and len(features) % len(encoded) == 0:
        source = _copies(modality, mask, sizes, len(features) // len(encoded))
    else:
        source = list(range(len(features)))
    distinct = [features[source.index(number)] for number in range(max(source, default=-1) + 1)]
    fresh = call.fresh[modality]
    sizes_now, source_now = [sizes[i] for i in fresh], [source[i] for i in fresh]
    return _Pieces(sizes_now, source_now, [len(feature) for feature in distinct], features=distinct)


def _copies(modality: str, mask: Tensor, sizes: list[int], times: int) -> list[int]:
    """Of every copy its original, where the images of each row stand there `times` times."""
    source: list[int] = []
    count = 0
    for number, row in enumerate(assign(modality, mask, sizes)):
        if number % times == 0:
            first, count = count, count + len(row)
        source += range(first, first + len(row))
    return source


def _encoded(
    family: Family,
    modality: str,
    found: _Pieces,
    shapes: Sequence[ImageShape],
    shares: Sequence[Sequence[TowerImage]],
) -> list[EncodedImage]:
    """What the tower encoded, as images in the language model.

    Args:
        shapes: of each, as far as they are known without the tower.
        shares: the tower's images that made each.
    """
    result = []
    for number, (size, shape, tiles) in enumerate(zip(found.encoded, shapes, shares, strict=True)):
        grids = [tile.grid for tile in tiles]
        if shape.guessed:
            shape = found.shape(family, modality, number, grids)
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


def _laid_out(mask: Tensor, images: Sequence[EncodedImage], frames: bool) -> list[EncodedImage]:
    """Images of which only the size is known as their runs of placeholders show them."""
    found = list(images)
    for row, own in enumerate(assign("image", mask, [image.size for image in images])):
        columns = mask[row].nonzero().squeeze(1).split([images[number].size for number in own])
        for number, places in zip(own, columns, strict=True):
            if images[number].shape.guessed and not images[number].taps:
                found[number] = EncodedImage(shape_of_runs(places.tolist(), frames), {})
    return found


def _joined(mask: Tensor, ids: Tensor | None, pieces: Sequence[EncodedImage], frames: bool) -> list[EncodedImage]:
    """Tiles (or frames) that belong to one image (or video) as one.

    The token in front of the last run of a row says that an image ends with that run, as do all runs behind such a one.
    A video goes on where no more than the marks around a frame stand between two runs.
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
            end = int(columns[start - 1]) + 1 if start else -MARKS - 1
            if run != last_run and (column - end > MARKS if frames else closed):
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
