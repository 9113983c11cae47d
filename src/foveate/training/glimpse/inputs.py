"""A batch as the language model receives it, and the same batch with glimpse tokens inserted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from foveate.core.grid import Grid
from foveate.core.view import Tap
from foveate.errors import InputError
from foveate.families.base import Family
from foveate.glimpse.geometry import token_counts
from foveate.training.losses import IGNORE


@dataclass(frozen=True)
class Prompt:
    """Prompts and answers just before the first decoder layer.

    Attributes:
        embeds: [B, L, hidden] text embeddings and projected image features.
        mask: [B, L] int64, 0 on padding.
        positions: [B, L], or [3, B, L] for M-RoPE.
        visual: [B, L] bool, image tokens.
        labels: [B, L], -100 outside the answer.
        conds: one [N, vision_hidden] per VIP layer; N is the number of image tokens of the batch, row by row.
        grids: merged grids of the images, row by row.
        counts: image tokens of each row.
    """

    embeds: Tensor
    mask: Tensor
    positions: Tensor
    visual: Tensor
    labels: Tensor
    conds: list[Tensor]
    grids: list[Grid]
    counts: list[int]

    @property
    def first_label(self) -> Tensor:
        """[B] index of the first answer token, before which glimpse tokens go."""
        return (self.labels != IGNORE).int().argmax(1)


class _ReachedLanguageModel(Exception):  # noqa: N818 - control flow, not an error
    """Carries the language model's arguments out of the stock forward pass, which need not go on."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments


def _stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
    raise _ReachedLanguageModel(kwargs)


@torch.no_grad()
def encode(family: Family, batch: Mapping[str, Tensor], blocks: Sequence[int]) -> Prompt:
    """Run the stock model up to its language model, reading vision blocks on the way.

    Args:
        family: adapter of the model.
        batch: arguments of the model's forward, with `labels`.
        blocks: vision blocks (from 0) whose outputs become `Prompt.conds`.

    Raises:
        InputError: no image, a row without answer tokens, or image tokens that do not match the images.
    """
    batch = _complete(family, batch)
    labels = batch.pop("labels")
    seen, grids = dict[int, Tensor](), list[Grid]()
    handles = _install_taps(family, blocks, seen, grids)
    try:
        family.parts.base(**batch, use_cache=False)
        raise AssertionError("the model never called its language model")
    except _ReachedLanguageModel as reached:
        arguments = reached.arguments
    finally:
        for handle in handles:
            handle.remove()
    visual = batch["input_ids"] == family.token_ids["image"]
    return Prompt(
        embeds=arguments["inputs_embeds"],
        mask=batch["attention_mask"],
        positions=_positions(arguments.get("position_ids"), batch["attention_mask"]),
        visual=visual,
        labels=labels,
        conds=[torch.cat(list(family.to_tokens(Tap("hidden", i), seen[i], grids))) for i in blocks],
        grids=grids,
        counts=_match(visual, grids),
    )


def _install_taps(
    family: Family, blocks: Sequence[int], seen: dict[int, Tensor], grids: list[Grid]
) -> list[RemovableHandle]:
    """Hooks that note block outputs and grids, and stop before the language model."""

    def see(block: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen[block] = output[0] if isinstance(output, tuple) else output

        return hook

    def see_grids(module: nn.Module, args: Any, kwargs: Any) -> None:
        grids.extend(family.tower_grids(args, kwargs))

    parts = family.parts
    assert parts.tower is not None, "a module with conditions from the tower needs one"
    return [
        *(parts.blocks[i].register_forward_hook(see(i)) for i in set(blocks)),
        parts.tower.register_forward_pre_hook(see_grids, with_kwargs=True),
        parts.text.register_forward_pre_hook(_stop, with_kwargs=True),
    ]


def insert(prompt: Prompt, glimpse: Tensor) -> Prompt:
    """Put glimpse tokens [le_length, hidden] before the first answer token of every row.

    Their positions continue the prompt's, and those of the answer move along (the published training step).
    """
    before, extra = prompt.first_label[:, None], len(glimpse)
    columns = torch.arange(prompt.mask.shape[1] + extra, device=before.device)[None]
    after = columns >= before + extra
    probe = (columns >= before) & ~after
    source = torch.where(after, columns - extra, torch.minimum(columns, before - 1))

    def move(x: Tensor, inserted: Tensor | int) -> Tensor:
        return torch.where(probe, inserted, x.gather(-1, source.expand(*x.shape[:-1], -1)))

    positions = prompt.positions.gather(-1, source.expand(*prompt.positions.shape[:-1], -1))
    ordinal = (columns - before + 1).clamp(min=0, max=extra)
    rows = torch.arange(len(before), device=before.device)[:, None]
    tokens = glimpse.to(prompt.embeds.dtype)[(ordinal - 1).clamp(min=0)]
    return replace(
        prompt,
        embeds=torch.where(probe[..., None], tokens, prompt.embeds[rows, source]),
        mask=move(prompt.mask, 1),
        positions=positions + ordinal,
        visual=move(prompt.visual, torch.zeros_like(probe)),
        labels=move(prompt.labels, IGNORE),
    )


def _complete(family: Family, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fill in what the collator may have left out, and check that there is something to learn from."""
    out = dict(batch)
    ids = out["input_ids"]
    out.setdefault("attention_mask", torch.ones_like(ids))
    if family.wants_token_types:  # without them the stock model gives image tokens text positions
        out.setdefault("mm_token_type_ids", (ids == family.token_ids["image"]).int())
    if out.get("pixel_values") is None:
        raise InputError("a training batch has no images; every example needs at least one")
    answered = (out["labels"] != IGNORE).any(1)
    if not answered.all():
        row = int((~answered).int().argmax())
        raise InputError(f"row {row} of a training batch has no answer tokens (all labels are {IGNORE})")
    return out


def _positions(positions: Tensor | None, mask: Tensor) -> Tensor:
    """Positions that the stock model would use; M-RoPE without the leading text row."""
    if positions is None:
        return (mask.cumsum(-1) - 1).clamp(min=0)
    return positions[-3:] if positions.dim() == 3 else positions.expand(len(mask), -1)


def _match(visual: Tensor, grids: Sequence[Grid]) -> list[int]:
    """Image tokens per row, checked to end where an image ends. Synchronises once."""
    counts = visual.sum(1).tolist()
    ends = torch.tensor([0, *token_counts(grids)]).cumsum(0)
    rows = torch.tensor([0, *counts]).cumsum(0)
    if ends[-1] != rows[-1] or not torch.isin(rows, ends).all() or min(counts) == 0:
        raise InputError(
            f"image tokens per row {counts} do not match the images' {token_counts(grids)} tokens; "
            "every row needs at least one image, with one placeholder for each of its tokens"
        )
    return counts
