"""A tower of one convolution, in place of those that need timm."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

WIDTH = 64


class ConvTower(nn.Module):
    """Patches of 14 pixels, as a map or (`flat`) as a sequence."""

    def __init__(self, config: Any, flat: bool) -> None:
        super().__init__()
        self.config, self.flat = config, flat
        self.conv = nn.Conv2d(3, WIDTH, 14, 14)
        self.timm_model = SimpleNamespace(patch_embed=SimpleNamespace(patch_size=(14, 14)))

    def forward(self, pixel_values: Tensor, **unused: Any) -> BaseModelOutputWithPooling:
        hidden = self.conv(pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=hidden.flatten(2).mT if self.flat else hidden)


class StandIn:
    """What a modelling file calls `AutoModel`; language models are stock."""

    def __init__(self, stock: Any, flat: bool) -> None:
        self.stock, self.flat = stock, flat

    def from_config(self, config: Any, **more: Any) -> nn.Module:
        if config.model_type in ("gemma3n_vision", "timm_wrapper"):
            return ConvTower(config, self.flat)
        found: nn.Module = self.stock.from_config(config, **more)
        return found


def without_timm(modelling: Any, flat: bool = False) -> None:
    """Let the models of a file be built without timm."""
    if not isinstance(modelling.AutoModel, StandIn):
        modelling.AutoModel = StandIn(modelling.AutoModel, flat)


def timm_config(**more: Any) -> Any:
    """The configuration of a tower of timm's."""
    from transformers import TimmWrapperConfig

    config = TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args={"embed_dim": WIDTH}, **more)
    config.hidden_size = WIDTH
    return config
