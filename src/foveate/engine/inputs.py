"""Reading and checking what a model is called with."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from foveate.engine.cache import FoveatedCache
from foveate.engine.call import Call, Kind
from foveate.engine.layout import assign
from foveate.engine.naming import CACHE, with_cache_named
from foveate.errors import InputError, UnsupportedModelError
from foveate.families.base import Family
from foveate.families.refusals import NO_VIDEO

Kwargs = dict[str, Any]


@cache
def _names(kind: type[nn.Module]) -> tuple[str, ...]:
    return tuple(inspect.signature(kind.forward).parameters)[1:]


def by_name(module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> Kwargs:
    """The arguments of a call with the names that `module.forward` gives to positional ones."""
    if args:
        names = _names(type(module))  # type: ignore[arg-type]
        kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
    return with_cache_named(kwargs)


def read_call(family: Family, kwargs: Kwargs) -> tuple[Call, Kwargs]:
    """What a call of the base model is, and its arguments without the images that the cache has seen.

    A follow-up turn of `generate` comes with the images of the whole conversation.

    Raises:
        InputError: images without placeholders, or of other sizes than their placeholders.
    """
    cache_ = kwargs.get(CACHE)
    known = isinstance(cache_, FoveatedCache) and (cache_.is_pruned or cache_.conversation.is_known)
    text = Kind.CONTINUATION if known else Kind.PLAIN
    outputs = kwargs.get("mm_encoder_outputs")
    call = Call(text, mask=kwargs.get("attention_mask"), incoming=family.incoming(kwargs))
    call.features = encoded_features(family, outputs)
    call.given = tuple(dict.fromkeys([*(outputs or {}), *family.given(kwargs)]))
    if not call.given:
        return call, kwargs
    ids = kwargs.get("input_ids")
    if isinstance(ids, Tensor):
        ids, call.padded = _to_host(ids, call.mask)
    call.visual, call.ids = placeholders(family, call.given, ids, kwargs.get("inputs_embeds"))
    seen = cache_.conversation.images() if isinstance(cache_, FoveatedCache) else None
    call.fresh = fresh_images(call.visual, call.sizes, seen)
    unsized = [m for m in call.given if m not in call.sizes and m in call.visual]
    # some models are given their images at every step; those of unknown size are new if they have placeholders
    if any(call.fresh.values()) or any(call.visual[modality].numpy().any() for modality in unsized):
        call.kind = Kind.PREFILL
    if all(len(call.fresh[modality]) == len(given) for modality, given in call.sizes.items()):
        return call, kwargs
    if call.features:
        kept = keep_fresh(outputs, call.features, call.fresh)
        return call, {**kwargs, "mm_encoder_outputs": kept or None}
    return call, kwargs | family.take(kwargs, call.fresh)


def _to_host(ids: Tensor, mask: Any) -> tuple[Tensor, bool | None]:
    """`[B, n]` ids on the host, and whether a plain mask of that shape has padding, with one synchronisation."""
    if not isinstance(mask, Tensor) or mask.shape != ids.shape or mask.device != ids.device:
        return ids.cpu(), None
    if ids.device.type == "cpu":
        return ids, not mask.numpy().all()
    both = torch.stack([ids, mask.to(ids.dtype)]).cpu()
    return both[0], not both[1].numpy().all()


def placeholders(
    family: Family, modalities: Sequence[str], ids: Tensor | None, embeds: Tensor | None
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Per modality, `[B, n]` bool on the host: where visual tokens stand; and the ids, which are there already. One
    synchronisation, if there are embeddings only.

    Args:
        modalities: that the call brings.
    """
    given = embeds if ids is None else ids
    if given is None:
        return {}, None
    marks = family.placeholders(modalities)
    if ids is not None:
        known = ids.numpy()
        return {modality: torch.from_numpy(known == token) for modality, token in marks.items()}, ids
    table: Any = family.parts.base.get_input_embeddings()  # type: ignore[operator]
    tokens = torch.tensor(list(marks.values()), device=given.device)
    masks = [(given == row).all(-1) for row in table(tokens)]
    return dict(zip(marks, torch.stack(masks).cpu(), strict=True)), None


def encoded_features(family: Family, outputs: Any) -> dict[str, list[Tensor]]:
    """Features per image (or tile) that `generate` computed ahead, by modality, where they are given apart."""
    found = {}
    for modality, output in (outputs or {}).items():
        features = _features(output)
        if isinstance(features, Tensor) and features.dim() > 3:
            features = features.flatten(0, -3)
        if features is not None and not (isinstance(features, Tensor) and features.dim() < 3):
            found[modality] = by_tile(family, list(features))
    return found


def by_tile(family: Family, features: list[Tensor]) -> list[Tensor]:
    """Features that come in one piece for each row of the batch, tile by tile. What is given twice (to two beams) stays
    the same tensors."""
    size = family.tile_tokens
    if size is None or any(len(feature) % size for feature in features):
        return features
    tiles = {id(feature): feature.split(size) for feature in features}
    return [tile for feature in features for tile in tiles[id(feature)]]


def fresh_images(
    visual: dict[str, Tensor], sizes: dict[str, list[int]], seen: list[int] | None
) -> dict[str, list[int]]:
    """Which of the given images stand in the tokens of this call.

    Args:
        visual: per modality, `[B, n]` bool on the host.
        sizes: per modality, tokens of every image given.
        seen: images that each row of the conversation has seen; None if nothing is known.
    """
    fresh = {modality: list(range(len(given))) for modality, given in sizes.items()}
    if seen is None or len(sizes) != 1:
        return fresh
    modality, given = next(iter(sizes.items()))
    counts = visual[modality].sum(1).tolist() if modality in visual else []
    if len(counts) != len(seen) or sum(given) == sum(counts):
        return fresh  # only the new images were given
    found, at = [], 0
    for skip, wanted in zip(seen, counts, strict=True):
        at += skip
        while wanted > 0 and at < len(given):
            found.append(at)
            wanted -= given[at]
            at += 1
    return {modality: found}


def keep_fresh(outputs: Any, features: dict[str, list[Tensor]], fresh: dict[str, list[int]]) -> dict[str, Any]:
    """Pre-encoded outputs with the fresh images only; the caller's objects stay as they are."""
    kept = {}
    for modality, output in outputs.items():
        if modality in fresh and not fresh[modality]:
            continue  # all of them are cached
        kept[modality] = copy.copy(output)
        if modality in fresh:
            chosen, given = fresh[modality], _features(output)
            whole = isinstance(given, Tensor) and len(given) == len(features[modality])
            picked = given[chosen] if whole else [features[modality][i] for i in chosen]
            name = "last_hidden_state" if getattr(output, "pooler_output", None) is None else "pooler_output"
            setattr(kept[modality], name, picked)
            deep = getattr(output, "deepstack_features", None)
            if deep is not None and isinstance(deep[0][0], int):  # (layer, features of every image)
                kept[modality].deepstack_features = [(k, [own[i] for i in chosen]) for k, own in deep]
            elif deep is not None and isinstance(deep[0][0], Tensor):  # per layer, features of every image
                sizes = [len(feature) for feature in features[modality]]
                layers = [torch.cat(list(layer)).split(sizes) for layer in deep]
                kept[modality].deepstack_features = [[layer[i] for i in chosen] for layer in layers]
    return kept


def _features(output: Any) -> Any:
    """What an encoder's output brings to the text: a few models project the tower's own later, or add all of it to the
    layers."""
    for name in ("pooler_output", "last_hidden_state"):
        if (found := getattr(output, name, None)) is not None:
            return found
    deep = getattr(output, "deepstack_features", None)
    return deep[0][1] if deep and isinstance(deep[0][0], int) else None


def check_placeholders(family: Family, call: Call) -> None:
    """Raise early, where the sizes of the images are known before they are encoded.

    Raises:
        InputError: images and placeholders do not match.
        UnsupportedModelError: videos that this family's stock code cannot read.
    """
    if "video" in call.given and (reason := NO_VIDEO.get(family.name)):
        raise UnsupportedModelError(f"Videos of '{family.name}' cannot be pruned: {reason}.")
    if family.shares_token and len(call.given) > 1:
        raise InputError(
            f"Images and videos of '{family.name}' stand on the same placeholder token, so stock code cannot take both "
            "in one call. Ask about them in conversations of their own."
        )
    for modality, given in call.sizes.items():
        mask = call.visual.get(modality)
        if mask is None or (given and not mask.numpy().any() and call.fresh[modality]):
            raise InputError(
                f"{len(given)} {modality}(s) were given, but the prompt has no {modality} placeholder tokens: "
                f"{modality.capitalize()} features and {modality} tokens do not match, so there is nothing to prune. "
                "Build the prompt with the processor's chat template; models that join images otherwise (Q-Formers "
                "with cross attention) cannot be pruned."
            )
        assign(modality, mask, [given[i] for i in call.fresh[modality]])


def padding_mask(mask: Any, rows: int, new: int, past: int, padded: bool | None = None) -> Tensor | None:
    """The 2-D attention mask as bool `[B, past + n]`, or None if every token is real.

    Args:
        padded: whether it has padding; None: that is looked up, which waits for the device.

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
    if mask.shape[1] != past + new:
        raise InputError(
            f"attention_mask covers {mask.shape[1]} tokens, but {past} cached and {new} new ones make "
            f"{past + new}. Pass the mask of the full conversation."
        )
    padded = not bool(mask.all()) if padded is None else padded
    return mask.bool() if padded else None


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
