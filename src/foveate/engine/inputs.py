"""Reading and checking what a model is called with."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from foveate.core.grid import Grid
from foveate.engine.layout import EncodedImage, assign
from foveate.engine.session import Call
from foveate.errors import InputError
from foveate.families.base import Family


def placeholders(family: Family, ids: Tensor | None, embeds: Tensor | None) -> dict[str, Tensor]:
    """Per modality, `[B, n]` bool on the host: where visual tokens stand. One synchronisation."""
    given = embeds if ids is None else ids
    if given is None or given.shape[1] == 1:  # decoding: never a placeholder, so do not wait for the device
        return {}
    if ids is not None:
        masks = [ids == token for token in family.token_ids.values()]
    else:
        table: Any = family.parts.base.get_input_embeddings()  # type: ignore[operator]
        tokens = torch.tensor(list(family.token_ids.values()), device=given.device)
        masks = [(given == row).all(-1) for row in table(tokens)]
    return dict(zip(family.token_ids, torch.stack(masks).cpu(), strict=True))


def encoded_features(outputs: Any) -> dict[str, list[Tensor]]:
    """Features per image that `generate` computed ahead, by modality."""
    found = {}
    for modality, output in (outputs or {}).items():
        features = getattr(output, "pooler_output", None)
        if features is not None:
            found[modality] = list(features)
    return found


def fresh_images(visual: dict[str, Tensor], sizes: dict[str, list[int]], seen: Tensor | None) -> dict[str, list[int]]:
    """Which of the given images stand in the tokens of this call.

    A follow-up turn comes with the images of the full conversation, of which `seen` `[B]` per row are cached.

    Args:
        visual: per modality, `[B, n]` bool on the host.
        sizes: per modality, tokens of every image given.
    """
    fresh = {modality: list(range(len(given))) for modality, given in sizes.items()}
    if seen is None or len(sizes) != 1:
        return fresh
    (modality, given), cached = next(iter(sizes.items())), seen.tolist()
    counts = visual[modality].sum(1).tolist() if modality in visual else []
    if len(counts) != len(cached) or sum(given) == sum(counts):
        return fresh  # only the new images were given
    found, at = [], 0
    for skip, wanted in zip(cached, counts, strict=True):
        at += skip
        while wanted > 0 and at < len(given):
            found.append(at)
            wanted -= given[at]
            at += 1
    return {modality: found}


def keep_fresh(outputs: Any, fresh: dict[str, list[int]]) -> dict[str, Any]:
    """Pre-encoded outputs with the fresh images only; the caller's objects stay as they are."""
    kept = {}
    for modality, output in outputs.items():
        kept[modality] = copy.copy(output)
        if modality in fresh:
            kept[modality].pooler_output = [output.pooler_output[i] for i in fresh[modality]]
    return kept


def check_placeholders(call: Call) -> None:
    """Raise `InputError` early, where the sizes of the images are known before they are encoded."""
    for modality, mask in call.visual.items():
        given = call.sizes.get(modality, [])
        if given:
            assign(modality, mask, [given[i] for i in call.fresh[modality]])


def match_images(call: Call, encoded: list[EncodedImage]) -> dict[str, list[EncodedImage]]:
    """The encoded images of a call in the order of their placeholders.

    `generate` repeats the *same* feature tensors for beams and several return sequences, so the identity of
    a tensor tells which image it came from.
    """
    counts = {m: len({id(f) for f in features}) for m, features in call.features.items()}
    counts |= {m: len(call.fresh[m]) for m in call.incoming}
    total = sum(counts.values())
    recent = encoded[len(encoded) - total :] if total <= len(encoded) else []
    found: dict[str, list[EncodedImage]] = {}
    for modality in call.visual:
        own, recent = recent[: counts.get(modality, 0)], recent[counts.get(modality, 0) :]
        if modality in call.features:
            every = _by_identity(modality, call.features[modality], own)
            found[modality] = [every[i] for i in call.fresh[modality]]
        else:
            found[modality] = own  # encoded in this call, which got the fresh ones only
    return found


def _by_identity(modality: str, features: list[Tensor], own: list[EncodedImage]) -> list[EncodedImage]:
    order: dict[int, int] = {}
    for feature in features:
        order.setdefault(id(feature), len(order))
    if not own:  # encoded elsewhere: sizes are known, taps are not
        return [EncodedImage(Grid(1, 1, len(f)), {}) for f in features]
    images = [own[order[id(feature)]] for feature in features]
    for feature, image in zip(features, images, strict=True):
        if len(feature) != image.grid.size:
            raise InputError(
                f"An image of {image.grid.size} visual tokens arrived with {len(feature)} {modality} features. "
                "Chunked prefill (`prefill_chunk_size`) cannot be pruned; leave it unset."
            )
    return images


def padding_mask(mask: Any, embeds: Tensor, past: int) -> Tensor | None:
    """The 2-D attention mask as bool `[B, past + n]`, or None if every token is real. One synchronisation.

    Raises:
        InputError: for prepared 4-D masks and masks of another length.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        kind = f"{mask.dim()}-D tensor" if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(
            f"attention_mask is a {kind}; pruning needs the plain 2-D padding mask [batch, tokens]. Prepared masks "
            "come from static caches or compiled generation: use the default dynamic cache."
        )
    expected = past + embeds.shape[1]
    if mask.shape[1] != expected:
        raise InputError(
            f"attention_mask covers {mask.shape[1]} tokens, but {past} cached and {embeds.shape[1]} new ones make "
            f"{expected}. Pass the mask of the full conversation."
        )
    return None if bool(mask.all()) else mask.bool()


def check_padding_side(valid: Tensor | None, caching: bool) -> None:
    """Right padding would put decoded tokens behind padding, which is wrong with or without pruning."""
    if valid is None or not caching:
        return
    wrong = (~valid[:, -1] & valid.any(1)).nonzero().squeeze(1).tolist()
    if wrong:
        raise InputError(
            f"Row(s) {wrong} are padded on the right; generation needs left padding. Set "
            "`processor.tokenizer.padding_side = 'left'`, or pass use_cache=False for a plain forward pass."
        )


def continued_positions(given: Tensor, mask: Tensor | None, past: int, deltas: Tensor) -> Tensor:
    """M-RoPE positions of new text tokens, from the deltas of *this* conversation.

    Args:
        given: `[1 | 3 | 4, B, n]` positions as stock code made them; with 4 axes the first is the plain text
            position. They are wrong if another conversation used the model in between.
        mask: `[B, past + n]` bool or None.
        deltas: `[B, 1]`.
    """
    axes, rows, n = given.shape
    if mask is None:
        text = torch.arange(past, past + n, device=given.device).expand(rows, -1)
    else:
        text = (mask.long().cumsum(1) - 1).clamp(min=0)[:, past:]
    moved = (text + deltas.to(text.device)).expand(min(axes, 3), -1, -1)
    return torch.cat([text[None], moved]) if axes == 4 else moved
