"""What the engine must know of a model: one adapter for every stock model, with tables for what cannot be probed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor, nn

from foveate.core.grid import Grid
from foveate.core.view import Tap
from foveate.errors import MissingTapError
from foveate.families.merging import merge_patches, per_image
from foveate.families.parts import attention_of
from foveate.families.probed import Probed
from foveate.families.tables import side


class Family(Probed):
    """Adapter of one model: probes a stock model's structure, so that most types need no line here.

    Subclass in a file of `foveate/families/`, or in another package under the entry points `foveate.families`, for what
    probing gets wrong; `model_types` are the values of `config.model_type` that a subclass serves.

    Raises:
        UnsupportedModelError: a part was not found, or images enter otherwise than as tokens of a decoder.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    default_template: ClassVar[str | None] = None
    """Chat template for checkpoints that come without one."""

    # -- reading the tower -------------------------------------------------------------------------------

    def block_of(self, tap: Tap) -> int:
        """Index of the vision block that a tap reads (resolves None and negative numbers).

        Raises:
            MissingTapError: there is no such block, or no way from its patches to tokens.
        """
        blocks = len(self.parts.blocks)
        if self.unreadable is not None:
            raise MissingTapError(
                f"{tap} cannot be read on '{self.name}': {self.unreadable}. Use a method that needs no taps."
            )
        block = self.default_block if tap.block is None else tap.block
        if not -blocks <= block < blocks:
            raise MissingTapError(
                f"{tap} asks for vision block {block}, but the tower of '{self.name}' has {blocks} blocks."
            )
        return block % blocks

    @property
    def default_block(self) -> int:
        """The last block with global attention that feeds the projector."""
        feature = getattr(self.config, "vision_feature_layer", None)
        if isinstance(feature, list | tuple):
            feature = feature[-1]
        if isinstance(feature, int):  # counts `hidden_states`, of which the first is the embedding
            return feature if feature < 0 else feature - 1
        full = getattr(getattr(self.config, "vision_config", None), "fullatt_block_indexes", None)
        blocks = self.parts.blocks
        attending = [number for number, block in enumerate(blocks) if attention_of(block) is not None]
        return max(full) if full else max(attending, default=-1)  # some towers have blocks of convolutions

    def block_attention(self, block: nn.Module) -> nn.Module:
        """The module of a vision block that calls the attention function."""
        found = attention_of(block)
        if found is None:
            raise MissingTapError(f"{type(block).__name__} of '{self.name}' has no attention module that can be read.")
        return found

    def key_features(self, block: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
        """The module of a vision block whose output holds its keys before rotary embedding, and how to take them out,
        heads concatenated."""
        attention: Any = self.block_attention(block)
        for name in ("k_proj", "key", "wk", "k"):
            if isinstance(found := getattr(attention, name, None), nn.Module):
                return found, lambda keys: keys
        joined = getattr(attention, "qkv", None)
        if not isinstance(joined, nn.Module):
            raise MissingTapError(f"{type(attention).__name__} of '{self.name}' has no projection of keys to read.")
        return joined, self._middle_third(attention)

    def _middle_third(self, attention: Any) -> Callable[[Tensor], Tensor]:
        """The keys in joined queries, keys and values; fewer heads of keys than of queries are possible."""
        sizes = [getattr(attention, name, None) for name in ("num_heads", "num_key_value_heads")]
        heads = sizes[0] or 1
        fewer = sizes[1] or heads

        def keys(joined: Tensor) -> Tensor:
            width = joined.shape[-1] // (heads + 2 * fewer)
            return joined[..., heads * width : (heads + fewer) * width]

        return keys

    def to_tokens(self, tap: Tap, values: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        """Values per patch, as the tower orders them, as values per visual token in raster order, a tensor per image.

        Args:
            values: `[B, S]` (received) or the tower's own shape with features last (keys, hidden).
            grids: of the images (or tiles) in tokens.
        """
        received = tap.kind == "received"
        values = values[..., None] if received else values
        patches = [grid.size * self.factor**2 for grid in grids]
        rows = per_image(values, patches, self.has_class_token and not self.class_token_last)
        window = self.window
        found = [
            merge_patches(row, grid, self.factor, self.merge, window) for row, grid in zip(rows, grids, strict=True)
        ]
        return [value.squeeze(-1) for value in found] if received else found

    @property
    def window(self) -> int:
        """Side of the tower's attention windows in tokens, 0 if it has none."""
        vision: Any = getattr(self.config, "vision_config", None)
        size = getattr(vision, "window_size", None)
        return size // side(vision.patch_size) // self.factor if size and self.merge == "windowed" else 0

    # -- reading the language model ----------------------------------------------------------------------

    def layer_attention(self, layer: int) -> nn.Module:
        """The module of a decoder layer that calls the attention function."""
        found = attention_of(self.parts.layers[layer])
        if found is None:
            raise MissingTapError(f"Decoder layer {layer} of '{self.name}' has no attention module that can be read.")
        return found

    @cached_property
    def has_axes(self) -> bool:
        """Whether positions of images have several axes; a few types inherit the attributes for that without them."""
        heads = (self.parts.head, self.parts.base)
        return any(hasattr(module, "get_rope_index") for module in heads)

    @cached_property
    def axes(self) -> int:
        """Axes of multimodal positions."""
        rope = getattr(self.parts.text.config, "rope_parameters", None) or {}
        return len(rope.get("mrope_section") or (0, 0, 0)) if isinstance(rope, dict) else 3

    def rotary(self, hidden: Tensor, positions: Tensor) -> Any:
        """Rotary embeddings (cos, sin) of text positions `[B, n]`."""
        module: Any = self.parts.text.rotary_emb
        sections = getattr(self.parts.text.config, "rope_parameters", None) or {}
        if isinstance(sections, dict) and "mrope_section" in sections:
            positions = positions.expand(3, *positions.shape)
        return module(hidden, positions)
