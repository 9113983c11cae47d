"""LLaVA-1.5: CLIP tower with class token, two-layer projector, Llama-like language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from foveate.core.grid import Grid
from foveate.core.view import Tap
from foveate.errors import UnsupportedModelError
from foveate.families.base import Family


class Llava(Family):
    """`LlavaForConditionalGeneration` with a CLIP vision tower whose class token is cropped."""

    name = "llava"
    model_types = ("llava",)
    tower_path = "vision_tower"
    blocks_path = "encoder.layers"
    has_class_token = True
    default_template = (
        "{% for m in messages %}{{ m.role.upper() + ': ' }}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for c in m.content %}{{ '<image>\n' if c.type == 'image' else c.text }}{% endfor %}{% endif %}{{ ' ' }}"
        "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )

    def __init__(self, model: nn.Module) -> None:
        tower = getattr(getattr(model, "model", model), "vision_tower", None)
        # CLIPVisionModel wrapped its transformer in `vision_model` before transformers 5.2x
        if tower is not None and not hasattr(tower, "encoder") and hasattr(tower, "vision_model"):
            self.blocks_path = "vision_model.encoder.layers"  # type: ignore[misc]
        super().__init__(model)
        strategy = getattr(self.config, "vision_feature_select_strategy", "default")
        if strategy != "default" or self.config.vision_config.model_type != "clip_vision_model":
            raise UnsupportedModelError(
                f"LLaVA with vision tower '{self.config.vision_config.model_type}' and feature strategy "
                f"'{strategy}' is not supported: the class token must come first and be cropped "
                "(clip_vision_model, 'default'). Add an adapter in foveate/families/ for it."
            )

    @property
    def token_ids(self) -> dict[str, int]:
        token = getattr(self.config, "image_token_id", None)
        return {"image": self.config.image_token_index if token is None else token}

    def _grid(self, pixels: Tensor) -> Grid:
        patch = self.config.vision_config.patch_size
        return Grid(1, pixels.shape[-2] // patch, pixels.shape[-1] // patch)

    def tower_grids(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Grid]:
        pixels = args[0] if args else kwargs["pixel_values"]
        return [self._grid(pixels)] * pixels.shape[0]

    def incoming(self, kwargs: dict[str, Any]) -> dict[str, list[Grid]]:
        pixels = kwargs.get("pixel_values")
        return {} if pixels is None else {"image": [self._grid(pixels)] * pixels.shape[0]}

    def take(self, kwargs: dict[str, Any], chosen: dict[str, list[int]]) -> dict[str, Any]:
        return {"pixel_values": kwargs["pixel_values"][chosen["image"]] if chosen["image"] else None}

    def without_images(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**kwargs, "pixel_values": None, "mm_encoder_outputs": None}

    def block_of(self, tap: Tap) -> int:
        # hidden_states[-2], the projector's input, is the output of the second-last block
        feature = self.config.vision_feature_layer
        last = feature[-1] if isinstance(feature, list | tuple) else feature
        return self.resolve_block(tap, last if last < 0 else last - 1)

    def block_attention(self, block: nn.Module) -> nn.Module:
        return block.self_attn  # type: ignore[return-value]

    def key_features(self, block: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
        return block.self_attn.k_proj, lambda keys: keys  # type: ignore[union-attr,return-value]

    def to_tokens(self, tap: Tap, values: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        return list(values[:, 1:])
