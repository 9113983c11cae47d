"""GlimpsePrune's predictor: the module and its checkpoints."""

from foveate.glimpse.config import GlimpseConfig
from foveate.glimpse.module import GlimpseModule
from foveate.glimpse.official import convert, load_module, load_official

__all__ = ["GlimpseConfig", "GlimpseModule", "convert", "load_module", "load_official"]
