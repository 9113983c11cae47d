"""LLaVA-1.5: a CLIP tower at one resolution; checkpoints without a chat template."""

from __future__ import annotations

from typing import Any

from foveate.core.grid import Grid
from foveate.families.base import Family
from foveate.families.layout import ImageShape
from foveate.families.tables import side


class Llava(Family):
    """`LlavaForConditionalGeneration`: sizes of images are known before they are encoded."""

    model_types = ("llava", "vipllava")
    default_template = (
        "{% for m in messages %}{{ m.role.upper() + ': ' }}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for c in m.content %}{{ '<image>\n' if c.type == 'image' else c.text }}{% endfor %}{% endif %}{{ ' ' }}"
        "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )

    def incoming(self, kwargs: dict[str, Any]) -> dict[str, list[ImageShape]]:
        pixels = kwargs.get("pixel_values")
        if pixels is None or getattr(self.config, "vision_feature_select_strategy", "default") == "full":
            return {}
        if kwargs.get("image_sizes") is not None:
            return {}
        patch = side(self.config.vision_config.patch_size)
        grid = Grid(1, pixels.shape[-2] // patch, pixels.shape[-1] // patch)
        return {"image": [ImageShape((grid,))] * pixels.shape[0]}
