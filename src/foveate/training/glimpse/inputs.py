"""A batch as the language model receives it: prompts, then places for glimpse tokens, then answers.

Rows are rearranged so that all glimpse tokens stand in the same columns: prompts are padded on their left, answers on
their right. What the language model makes of a prompt can then be shared by everything that is tried behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.core.grid import Grid
from foveate.core.view import Tap
from foveate.engine.encode import encode
from foveate.engine.layout import Layout
from foveate.engine.naming import CACHE
from foveate.errors import InputError, UnsupportedModelError
from foveate.families.base import Family
from foveate.training.evidence import PlacedImage, images_of
from foveate.training.losses import IGNORE


@dataclass(frozen=True)
class PromptBatch:
    """A batch just before the first decoder layer: P columns of prompts, g of glimpse tokens, A of answers.

    Attributes:
        arguments: of the language model, for all `P + g + A` columns.
        valid: `[B, P + g + A]` bool, False on padding.
        labels: `[B, A]` tokens of the answers, -100 elsewhere.
        length: P.
        glimpses: g.
        columns: for each row, `[N_b]` the columns of its visual tokens in raster order, image after image.
        conds: one `[N, vision_hidden]` per VIP layer; N is the number of visual tokens of the batch, row by row.
        images: for each row, its images.
    """

    arguments: dict[str, Any]
    valid: Tensor
    labels: Tensor
    length: int
    glimpses: int
    columns: list[Tensor]
    conds: list[Tensor]
    images: list[list[PlacedImage]]

    @property
    def grids(self) -> list[Grid]:
        """Merged grids of all images, row by row."""
        return [grid for own in self.images for grids, _ in own for grid in grids]

    @property
    def counts(self) -> list[int]:
        """Visual tokens of each row."""
        return [len(own) for own in self.columns]

    @property
    def positions(self) -> Tensor | None:
        """`[..., B | 1, P + g + A]` position ids, None if the model counts for itself."""
        found: Tensor | None = self.arguments.get("position_ids")
        return found

    def before(self) -> dict[str, Any]:
        """Arguments of the language model for the prompts alone."""
        return {name: _columns(value, self._size, 0, self.length) for name, value in self.arguments.items()}

    def without_glimpses(self) -> dict[str, Any]:
        """Arguments of the language model for prompts and answers, as if there never were glimpse tokens."""
        g, end = self.glimpses, self.length + self.glimpses
        found = dict(self.arguments)
        for name, value in self.arguments.items():
            dim = _dim(value, self._size)
            if dim is not None:
                rest = _columns(value, self._size, end, self._size[1])
                rest = rest - g if name == "position_ids" else rest
                found[name] = torch.cat([_columns(value, self._size, 0, self.length), rest], dim)
        return found

    def behind(self, glimpses: bool, answers: bool) -> tuple[Tensor | None, Tensor]:
        """Position ids of what follows the prompts, and the `[B, P + n]` padding mask up to its end."""
        g, start = self.glimpses, self.length
        end = start + g + (self.labels.shape[1] if answers else 0)
        own = slice(start if glimpses else start + g, end)
        positions = self.positions
        if positions is not None:
            positions = positions[..., own] - (0 if glimpses else g)
        return positions, torch.cat([self.valid[:, :start], self.valid[:, own]], 1).long()

    @property
    def answers(self) -> Tensor:
        """`[B, A, D]` embeddings of the answers."""
        embeds: Tensor = self.arguments["inputs_embeds"]
        return embeds[:, self.length + self.glimpses :]

    @property
    def _size(self) -> tuple[int, int]:
        return self.valid.shape[0], self.valid.shape[1]


def prepare(family: Family, batch: Mapping[str, Tensor], blocks: Sequence[int], glimpses: int) -> PromptBatch:
    """Run the stock model up to its language model, reading vision blocks on the way.

    Args:
        family: adapter of the model.
        batch: arguments of the model's forward, with `labels`.
        blocks: vision blocks (from 0) whose outputs become `PromptBatch.conds`.
        glimpses: number of glimpse tokens.

    Raises:
        InputError: no image, a row without answer tokens, or image tokens that do not match the images.
        UnsupportedModelError: the language model's masks are made before it is called.
    """
    batch, length = _arranged(family, batch, glimpses)
    labels, valid = batch.pop("labels"), batch["attention_mask"].bool()
    arguments, layout = encode(family, batch, blocks)
    given = arguments.get("attention_mask")
    if given is not None and not (isinstance(given, Tensor) and given.dim() == 2):
        raise UnsupportedModelError(
            f"'{family.name}' makes its attention masks before its language model is called; glimpse modules cannot be "
            "trained for it."
        )
    arguments = {name: value for name, value in arguments.items() if name not in ("use_cache", CACHE)}
    columns = _visual_columns(layout, length)
    taps = [Tap("hidden", block) for block in blocks]
    return PromptBatch(
        arguments=arguments,
        valid=valid,
        labels=labels[:, length + glimpses :],
        length=length,
        glimpses=glimpses,
        columns=columns,
        conds=[torch.cat([group.taps[tap] for group in layout.groups]) for tap in taps],
        images=[images_of(group.grids, list(zip(group.images, group.across, strict=True))) for group in layout.groups],
    )


def _arranged(family: Family, batch: Mapping[str, Tensor], glimpses: int) -> tuple[dict[str, Tensor], int]:
    """The batch with places for glimpse tokens before every answer, all in the same columns, and the first of them."""
    ids, labels = batch["input_ids"], batch["labels"]
    mask = batch.get("attention_mask")
    valid = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    answered = (labels != IGNORE) & valid
    if not answered.any(1).all():
        row = int((~answered.any(1)).int().argmax())
        raise InputError(f"row {row} of a training batch has no answer tokens (all labels are {IGNORE})")
    first = answered.int().argmax(1)
    column = torch.arange(ids.shape[1], device=ids.device)
    before, after = valid & (column < first[:, None]), valid & (column >= first[:, None])
    length, tail = int(before.sum(1).max()), int(after.sum(1).max())
    # places that hold nothing repeat the answer's first token: never a placeholder of an image
    source = first[:, None].repeat(1, length + glimpses + tail)
    made = torch.zeros_like(source, dtype=torch.bool)
    made[:, length : length + glimpses] = True
    for row in range(len(ids)):
        own, rest = before[row].nonzero().squeeze(1), after[row].nonzero().squeeze(1)
        start, end = length - len(own), length + glimpses
        source[row, start:length], source[row, end : end + len(rest)] = own, rest
        made[row, start:length] = made[row, end : end + len(rest)] = True
    found = {name: x.gather(1, source) if _runs_along(x, ids) else x for name, x in batch.items()}
    found["attention_mask"] = made.long()
    column = torch.arange(source.shape[1], device=ids.device)
    found["labels"] = found["labels"].masked_fill(~made | (column < length + glimpses), IGNORE)
    if family.wants_token_types and "mm_token_type_ids" not in found:
        found["mm_token_type_ids"] = _token_types(family, found["input_ids"])
    return found, length


def _runs_along(value: Any, ids: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == ids.shape


def _token_types(family: Family, ids: Tensor) -> Tensor:
    """Without them some stock models give image tokens the positions of text."""
    types = torch.zeros_like(ids)
    for number, modality in enumerate(("image", "video"), 1):
        if modality in family.token_ids:
            types = types.masked_fill(ids == family.token_ids[modality], number)
    return types


def _visual_columns(layout: Layout, length: int) -> list[Tensor]:
    """Per row, the columns of its visual tokens."""
    found: dict[int, Tensor] = {group.row: group.columns[: group.total] for group in layout.groups}
    for row in range(layout.rows):
        if row not in found:
            raise InputError(f"row {row} of a training batch has no image; every row needs at least one")
        if int(found[row].max()) >= length:
            raise InputError(f"row {row} of a training batch has an image in its answer; images belong to the prompt")
    return [found[row] for row in range(layout.rows)]


def _dim(value: Any, size: tuple[int, int]) -> int | None:
    """The dimension of a language model's argument that runs along the sequence."""
    if not isinstance(value, Tensor):
        return None
    rows, length = size
    for dim in (1, -1):  # [B, n, ...], then [axes, B, n]
        if value.dim() > 1 and value.shape[dim] == length and value.shape[dim - 1] in (1, rows):
            return dim
    return None


def _columns(value: Any, size: tuple[int, int], start: int, end: int) -> Any:
    """A part of an argument that runs along the sequence; any other as it is."""
    dim = _dim(value, size)
    return value if dim is None else value.narrow(dim, start, end - start)
