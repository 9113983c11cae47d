"""A trace in words."""

from __future__ import annotations

import re

from foveate.core.tower import IN_TOWER
from foveate.trace.records import PrefillTrace


def describe(trace: PrefillTrace) -> str:
    """A few lines: tokens alive per stage and image, KV bytes, time spent selecting."""
    if not trace.groups:
        return f"{title(trace)}: no visual tokens seen yet"
    lines = [title(trace), f"  visual tokens  {chain(trace)}"]
    lines.append(f"  average        {trace.keep_ratio:.1%} of {trace.visual_tokens} per layer ({trace.layers} layers)")
    if trace.kv_bytes:
        share = trace.kv_bytes / trace.kv_bytes_unpruned
        lines.append(f"  KV cache       {trace.kv_bytes:,} of {trace.kv_bytes_unpruned:,} bytes ({share:.1%})")
    lines.append(f"  selecting      {trace.selecting.ms:.1f} ms of {trace.prefill.ms:.1f} ms prefill")
    lines.append(f"  reading        {trace.tapping.ms:.1f} ms of {trace.vision.ms:.1f} ms in the vision tower")
    lines += [f"  note           {note}" for note in trace.notes]
    if len(trace.groups) > 1:
        lines += [f"  {_image_line(trace, number)}" for number in range(len(trace.groups))]
    return "\n".join(lines)


def title(trace: PrefillTrace) -> str:
    """The method with the parameters that are set; those that are None follow from the model or are not used."""
    return re.sub(r"\((?:, )?", "(", re.sub(r"(?:, |(?<=\())\w+=None\b", "", trace.method))


def stages(trace: PrefillTrace) -> list[tuple[int, int, int]]:
    """(layer, visual tokens alive after the stage, of these merged) for all rows together."""
    layers = sorted({step.layer for group in trace.groups for step in group.steps})
    found = []
    for layer in layers:
        steps = [step for group in trace.groups for step in group.steps if step.layer == layer]
        merged = sum(len(set(step.merged[0].tolist())) for step in steps if step.merged is not None)
        alive = sum(len(group.alive_at(layer)) for group in trace.groups)
        found.append((layer, alive, merged))
    return found


def where(layer: int) -> str:
    """A stage in words."""
    if layer == IN_TOWER:
        return "in the vision tower"
    return "before the LLM" if layer == 0 else f"before layer {layer}"


def chain(trace: PrefillTrace) -> str:
    """`576 -> 172 (before the LLM) -> 77 (before layer 2, 20 merged) -> ...`"""
    parts = [str(trace.visual_tokens)]
    for layer, alive, merged in stages(trace):
        parts.append(f"{alive} ({where(layer)}{f', {merged} merged' if merged else ''})")
    return " -> ".join(parts)


def _image_line(trace: PrefillTrace, number: int) -> str:
    group = trace.groups[number]
    size = " + ".join(" x ".join(str(n) for n in (grid[1:] if grid.t == 1 else grid)) for grid in group.grids)
    kept = " -> ".join([str(group.shown), *(str(len(group.alive_at(step.layer))) for step in group.steps)])
    return f"row {group.row} image {group.image} ({size}): {kept}"
