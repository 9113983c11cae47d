"""A trace in a notebook: text from models and checkpoints is escaped, pictures say what they show."""

from __future__ import annotations

import base64
import io
from html import escape

from PIL import Image

from foveate.trace.overlay import overlay
from foveate.trace.records import PrefillTrace
from foveate.trace.text import chain, title

FIGURE = "display:inline-block;margin:0 1em 1em 0;vertical-align:top;max-width:100%"
MOST = 4
"""Images that are drawn."""
FULL, LEFT = "#d8dee4", "#2da44e"


def render(trace: PrefillTrace, said: str = "", row: int | None = None) -> str:
    """What happened, as a fragment of HTML without scripts and without anything to be fetched.

    Args:
        said: the answer, for its head.
        row: of which row images are drawn; None: of all.
    """
    head = f"<p><b>{escape(said)}</b></p>" if said else ""
    name = f"<code>{escape(title(trace))}</code>"
    if not trace.groups:
        return f"<div>{head}<p>{name}: no visual tokens seen yet</p></div>"
    notes = "".join(f"<li>{escape(note)}</li>" for note in trace.notes)
    below = f"<ul>{notes}</ul>" if notes else ""
    return f"<div>{head}<p>{name}</p>{_facts(trace)}{_bars(trace)}{_maps(trace, row)}{below}</div>"


def _facts(trace: PrefillTrace) -> str:
    rows = [
        ("visual tokens", chain(trace)),
        ("average", f"{trace.keep_ratio:.1%} of {trace.visual_tokens} per layer, {trace.layers} layers"),
        ("time to first token", f"{trace.first_token_ms:.1f} ms, of which choosing {trace.selecting.ms:.1f} ms"),
    ]
    if trace.kv_bytes:
        share = trace.kv_bytes / trace.kv_bytes_unpruned
        rows.append(("KV cache", f"{trace.kv_bytes:,} of {trace.kv_bytes_unpruned:,} bytes ({share:.1%})"))
    cells = "".join(f"<tr><th style='text-align:left'>{name}</th><td>{escape(text)}</td></tr>" for name, text in rows)
    return f"<table>{cells}</table>"


def _bars(trace: PrefillTrace) -> str:
    """How many tokens are alive in each layer, a bar each."""
    alive, height, width = trace.alive_per_layer(), 60, 10
    bars = ""
    for number, count in enumerate(alive):
        left = height * count / trace.visual_tokens
        bar = f"<rect x='{number * width}' width='{width - 2}'"
        bars += f"{bar} y='0' height='{height}' fill='{FULL}'/>"
        bars += f"{bar} y='{height - left:.1f}' height='{left:.1f}' fill='{LEFT}'>"
        bars += f"<title>layer {number}: {count}</title></rect>"
    label = f"Visual tokens alive in each of {trace.layers} layers: {', '.join(map(str, alive))}"
    size = f"viewBox='0 0 {width * max(1, len(alive))} {height}' style='max-width:100%;height:{height}px'"
    return f"<svg role='img' aria-label='{label}' {size}>{bars}</svg>"


def _maps(trace: PrefillTrace, row: int | None) -> str:
    """Where tokens were dropped of the first images: a trace does not hold the pictures themselves."""
    every = [
        (group, group.image + number)
        for group in trace.groups
        if row in (None, group.row)
        for number in range(len(group.images))
    ]
    shown = []
    for group, index in every[:MOST]:
        grid = group.grids[sum(group.images[: index - group.image])]
        plain = Image.new("RGB", (grid.w * 16, grid.h * 16), "white")
        kept = len(group.alive_at(trace.layers))
        title = f"row {group.row}, image {index}"
        alt = f"Map of {title}, {grid.h} x {grid.w}: {kept} of {group.shown} visual tokens are kept to the end"
        shown.append(_figure(overlay(plain, trace, group.row, index), alt, title))
    left = len(every) - len(shown)
    return "".join(shown) + (f"<p>and {left} more images</p>" if left > 0 else "")


def _figure(picture: Image.Image, alt: str, caption: str) -> str:
    """A picture inside the page, with a text for those who do not see it."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    shown = f"<img style='width:20em;max-width:100%' alt='{escape(alt)}' src='data:image/png;base64,{data}'>"
    return f"<figure style='{FIGURE}'>{shown}<figcaption>{escape(caption)}</figcaption></figure>"
