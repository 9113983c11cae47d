"""What the engine writes into a trace."""

from __future__ import annotations

from foveate.engine.cache import FoveatedCache
from foveate.engine.layout import Layout
from foveate.trace.records import GroupTrace, PrefillTrace


def begin(trace: PrefillTrace, layout: Layout) -> None:
    """Note what comes: rows, padding, images."""
    trace.rows, trace.past, trace.length = layout.rows, layout.past, layout.length
    trace.padding = [layout.length - count for count in layout.counts()]
    trace.groups = [
        GroupTrace(
            g.row, g.image, g.grids, g.columns, g.visible, g.fixed, g.images, tuple(left or () for left in g.left)
        )
        for g in layout.groups
    ]


def end(trace: PrefillTrace, cache: FoveatedCache | None) -> None:
    """Weigh the cache right after the prefill."""
    if cache is None:
        return
    trace.kv_bytes = cache.nbytes()
    total = cache.get_seq_length()
    for number, layer in enumerate(cache.layers):
        if getattr(layer, "keys", None) is not None and layer.values is not None:
            columns = max(cache.physical_length(number), 1)
            both = sum(t.numel() * t.element_size() for t in (layer.keys, layer.values))
            trace.kv_bytes_unpruned += both // columns * total
