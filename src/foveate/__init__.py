"""foveate: visual-token pruning for stock Hugging Face vision-language models."""

from foveate import methods
from foveate.core.budget import Keep
from foveate.core.method import Method, Score, Stage
from foveate.core.selection import Selection
from foveate.core.view import Tap, View
from foveate.engine.cache import FoveatedCache
from foveate.inference.loading import load
from foveate.inference.pruning import attach, detach, prune
from foveate.trace.trace import Trace
from foveate.version import __version__

__all__ = [
    "FoveatedCache",
    "Keep",
    "Method",
    "Score",
    "Selection",
    "Stage",
    "Tap",
    "Trace",
    "View",
    "__version__",
    "attach",
    "detach",
    "load",
    "methods",
    "prune",
]
