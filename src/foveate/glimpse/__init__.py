"""GlimpsePrune's predictor: the module, its checkpoints, its losses and its training."""

from foveate.glimpse.config import GlimpseConfig
from foveate.glimpse.module import GlimpseModule
from foveate.glimpse.official import convert, load_module

__all__ = ["GlimpseConfig", "GlimpseModule", "convert", "load_module"]
