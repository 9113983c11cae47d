"""foveate: visual-token pruning for stock Hugging Face vision-language models.

What stands here is imported when it is first used: the command line answers `--help` without torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from foveate.version import __version__

if TYPE_CHECKING:
    from foveate import methods
    from foveate.core.budget import Keep
    from foveate.core.method import Method, Score, Stage
    from foveate.core.selection import Selection
    from foveate.core.view import Tap, View
    from foveate.engine.cache import FoveatedCache
    from foveate.inference.loading import load
    from foveate.inference.pruning import attach, detach, prune
    from foveate.trace.trace import Trace

_WHERE = {
    "core.budget": ("Keep",),
    "core.method": ("Method", "Score", "Stage"),
    "core.selection": ("Selection",),
    "core.view": ("Tap", "View"),
    "engine.cache": ("FoveatedCache",),
    "inference.loading": ("load",),
    "inference.pruning": ("attach", "detach", "prune"),
    "trace.trace": ("Trace",),
}

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


def __getattr__(name: str) -> Any:
    for module, names in _WHERE.items():
        if name in names:
            found = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
            return found
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:  # a room, as in `foveate.errors`
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
