"""What a method asks of a model, checked before a prefill; and what it gets instead, for the trace."""

from __future__ import annotations

from dataclasses import replace

from foveate.core.method import BEFORE_LLM, Method
from foveate.engine.proportional import weighs
from foveate.engine.standins import needs_stand_ins
from foveate.errors import ConfigurationError, MissingTapError
from foveate.families.base import Family
from foveate.families.tower_layouts import check_prunable


def check(family: Family, method: Method) -> None:
    """A bad configuration shows here, not in the middle of a prefill."""
    info = family.info
    stages = method.stages(info)
    layers = [stage.layer for stage in stages]
    last = info.layers - (0 if stages and stages[-1].compact_earlier else 1)
    if layers != sorted(set(layers)) or any(not 0 <= k <= last for k in layers):
        raise ConfigurationError(
            f"{method} selects before layers {layers}; they must increase and lie in 0..{info.layers - 1} "
            f"({info.layers} decoder layers; 0 is before the language model)."
        )
    method.check(info)
    weighs(family, method)
    _check_reading(family, method)
    if not needs_stand_ins(family, method):
        for tap in method.taps(info):
            family.block_of(tap)
    if method.tower_stages(info):
        _check_tower(family, method)


def _check_tower(family: Family, method: Method) -> None:
    """Raise where the vision tower cannot be pruned so."""
    check_prunable(family)
    info = family.info
    last = (info.tower_blocks if info.feeding is None else info.feeding) - 1
    stages = method.tower_stages(info)
    blocks = [stage.block for stage in stages]
    if blocks != sorted(set(blocks)) or blocks[0] < 0 or blocks[-1] > last:
        raise ConfigurationError(
            f"{method} selects before tower blocks {blocks}; they must increase and lie in 0..{last}, the blocks of "
            f"'{info.family}' whose output reaches the language model."
        )
    for stage in stages:
        for tap in stage.taps:
            if family.block_of(tap) >= stage.block:
                raise MissingTapError(
                    f"{method} reads {tap} before tower block {stage.block}, but that block has not run then; read an "
                    "earlier one."
                )
    if not any(stage.layer == BEFORE_LLM for stage in method.stages(info)):
        raise ConfigurationError(
            f"{method} has stages in the vision tower but none before the language model, where what the tower left is "
            "taken over; add Stage(0)."
        )


def _check_reading(family: Family, method: Method) -> None:
    """Raise where the language model has no layer that could be read."""
    info = family.info
    for stage in method.stages(info):
        if stage.reads != "nothing" and stage.layer and info.reading_layer(stage.layer) is None:
            first = next((layer + 1 for layer in range(info.layers) if info.can_read(layer)), None)
            possible = first is not None and first < info.layers
            remedy = f"select before layer {first} or later" if possible else "use a method that reads no layer"
            raise ConfigurationError(
                f"{method} reads {stage.reads} before layer {stage.layer}, but no layer before it of '{info.family}' "
                f"has keys that can be read; {remedy}."
            )
    probe = method.probe(info)
    unread = [layer for layer in (probe.reads if probe is not None else ()) if not info.can_read(layer)]
    if unread:
        raise ConfigurationError(
            f"{method} reads its probe in layers {unread} of '{info.family}', whose attention cannot be read."
        )


def notes(family: Family, method: Method) -> tuple[str, ...]:
    """What is read otherwise than a method says, for the trace."""
    info, found = family.info, []
    plain = method.stages(replace(info, readable=None, windowed=()))
    for here, elsewhere in zip(method.stages(info), plain, strict=True):
        if here.layer != elsewhere.layer:
            found.append(
                f"the stage before layer {elsewhere.layer} is before layer {here.layer}: no earlier layer can be read"
            )
    for stage in method.stages(info):
        layer = info.reading_layer(stage.layer) if stage.reads != "nothing" and stage.layer else None
        if layer is not None and layer != stage.layer - 1:
            before = stage.layer - 1
            kind = family.layers[before].kind
            found.append(
                f"the stage before layer {stage.layer} reads layer {layer}: layer {before} ({kind}) is unreadable"
            )
        if layer in info.windowed:
            found.append(f"the stage before layer {stage.layer} reads layer {layer}, which sees its window only")
    if weighs(family, method) != method.weighs(info):
        found.append("attention is not proportional: the attention function takes no mask to be added")
    if needs_stand_ins(family, method):
        found.append(
            f"the vision tower cannot be read ({family.unreadable}): projected features stand in for it, and the order "
            "of max-min diversity for received attention"
        )
    elif any(tap.kind == "received" for tap in method.taps(info)):
        found.append(f"received attention comes from {'the class token' if info.has_class_token else 'all patches'}")
    return tuple(found)
