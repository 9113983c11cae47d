"""How large a KV cache will become, before anything runs: for admission by memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foveate.core.frames import frame_sizes
from foveate.core.method import Method, Score
from foveate.families import adapt


def plan_columns(model: Any, method: Method | None, inputs: Mapping[str, Any]) -> list[int]:
    """Columns that every layer's cache has at most after the prefill of one row.

    A method whose number of tokens depends on what it sees is planned as if it kept everything.

    Args:
        inputs: model inputs of one row.

    Raises:
        ConfigurationError: the method's budget cannot be met for these images.
    """
    family = adapt(model)
    info, length = family.info, int(inputs["input_ids"].shape[1])
    images = [image for found in family.incoming(dict(inputs)).values() for image in found]
    sizes = [image.size for image in images]
    if method is None or not method.prunes or not sizes or not _says_beforehand(method):
        return [length] * info.layers
    groups = [sum(sizes)] if method.per == "prompt" else sizes
    if method.per == "frame":
        groups = [size for image in images for size in frame_sizes(image.grids)]
    stages = method.stages(info)
    columns = [length] * info.layers
    for size in groups:
        alive = _alive(stages, method.counts(info, size), size, info.layers)
        columns = [column - (size - count) for column, count in zip(columns, alive, strict=True)]
    # the prompt's last token always stays; a method may count without it
    return [min(length, column + 1) for column in columns]


def column_bytes(model: Any) -> int:
    """Bytes of the keys and values of one token in one layer."""
    config = model.config.get_text_config()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(2 * heads * head * model.dtype.itemsize)


def _says_beforehand(method: Method) -> bool:
    """Whether `counts` is what the method keeps. One that chooses for itself how many need not keep to it."""
    if method.adaptive or method.keep is None or method.budget.threshold is not None:
        return False
    kind = type(method)
    return kind.counts is not Method.counts or kind.select in (Method.select, Score.select)


def _alive(stages: Sequence[Any], counts: Sequence[int], size: int, layers: int) -> list[int]:
    """How many of an image's tokens every layer's cache holds."""
    alive = [size] * layers
    for stage, count in zip(stages, counts, strict=True):
        first = 0 if stage.compact_earlier else stage.layer
        alive[first:] = [min(count, size)] * (layers - first)
    return alive
