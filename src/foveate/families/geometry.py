"""A model as numbers: all that an analytic count of operations needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foveate.errors import UnsupportedModelError


@dataclass(frozen=True)
class Vision:
    """A vision transformer with its projector.

    Attributes:
        depth, width, mlp: blocks, hidden size, hidden size of the MLP.
        gated: whether the MLP has a gate (three matrices, not two).
        patch: values per patch that the patch embedding reads (channels x time x height x width).
        merge: patches per visual token along each side.
        extra: tokens besides the patches (a class token).
        window: side of the attention window in visual tokens; 0: every block sees the whole image.
        full: blocks that see the whole image (frame).
        projector: (inputs, outputs) of the projector's matrices, applied once per visual token.
    """

    depth: int
    width: int
    mlp: int
    gated: bool
    patch: int
    merge: int
    extra: int
    window: int
    full: tuple[int, ...]
    projector: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Text:
    """A decoder-only language model with grouped-query attention and a gated MLP.

    Attributes:
        layers, width, mlp: decoder layers, hidden size, hidden size of the MLP.
        heads, kv_heads, head: query heads, key/value heads, size of a head.
        vocabulary: rows of the LM head.
    """

    layers: int
    width: int
    mlp: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int


@dataclass(frozen=True)
class Geometry:
    """A vision-language model as numbers."""

    family: str
    vision: Vision
    text: Text

    @classmethod
    def of(cls, config: Any) -> Geometry:
        """Read the numbers from a transformers configuration.

        Raises:
            UnsupportedModelError: no formula for this family.
        """
        text = config.get_text_config()
        numbers = Text(
            layers=text.num_hidden_layers,
            width=text.hidden_size,
            mlp=text.intermediate_size,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            vocabulary=text.vocab_size,
        )
        reader = READERS.get(config.model_type)
        if reader is None:
            raise UnsupportedModelError(
                f"There is no FLOPs formula for '{config.model_type}'; there is one for {', '.join(sorted(READERS))}. "
                "Add a reader of its vision configuration to foveate/bench/geometry.py."
            )
        return cls(config.model_type, reader(config.vision_config, text.hidden_size), numbers)


def _clip(config: Any, out: int) -> Vision:
    return Vision(
        depth=config.num_hidden_layers,
        width=config.hidden_size,
        mlp=config.intermediate_size,
        gated=False,
        patch=config.num_channels * config.patch_size**2,
        merge=1,
        extra=1,
        window=0,
        full=tuple(range(config.num_hidden_layers)),
        projector=((config.hidden_size, out), (out, out)),
    )


def _qwen2_5(config: Any, out: int) -> Vision:
    merged = config.hidden_size * config.spatial_merge_size**2
    return Vision(
        depth=config.depth,
        width=config.hidden_size,
        mlp=config.intermediate_size,
        gated=True,
        patch=config.in_channels * config.temporal_patch_size * config.patch_size**2,
        merge=config.spatial_merge_size,
        extra=0,
        window=config.window_size // config.patch_size // config.spatial_merge_size,
        full=tuple(config.fullatt_block_indexes),
        projector=((merged, merged), (merged, out)),
    )


READERS = {"llava": _clip, "qwen2_5_vl": _qwen2_5}
