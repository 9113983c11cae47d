"""Small real models that ship inside the package, trained on `foveate.scenes`.

A zoo model is an ordinary checkpoint folder: `from_pretrained(zoo.resolve("foveate/scenes-qwen2_5_vl"))`.
Recipe, data and accuracy stand in `zoo/README.md`.
"""

from __future__ import annotations

from pathlib import Path

from foveate.errors import FoveateError

__all__ = ["DEFAULT", "ONLY_SCENES", "SYSTEM", "UnknownZooModelError", "names", "path", "resolve"]

DEFAULT = "foveate/scenes-qwen2_5_vl"
SYSTEM = "You are a helpful assistant."
"""The only system message that the zoo's models have seen."""

ONLY_SCENES = "The shipped model has seen rendered scenes only: of photographs and other pictures it knows nothing."

_PREFIX = "foveate/"
_ROOT = Path(__file__).parent


class UnknownZooModelError(FoveateError):
    """A `foveate/...` name that no folder of the package answers to.

    Remedy: choose one of `foveate.zoo.names()`.
    """


def names() -> list[str]:
    """Names of the models in this installation, e.g. ``["foveate/scenes-qwen2_5_vl"]``."""
    return sorted(_PREFIX + config.parent.name for config in _ROOT.glob("*/config.json"))


def path(name: str) -> Path:
    """Folder of the zoo model `name`, with or without the `foveate/` prefix.

    Raises:
        UnknownZooModelError: no such model is installed.
    """
    full = name if name.startswith(_PREFIX) else _PREFIX + name
    if full not in names():
        raise UnknownZooModelError(f"no zoo model is called {name!r}; installed: {', '.join(names()) or 'none'}")
    return _ROOT / full.removeprefix(_PREFIX)


def resolve(name_or_path: str) -> str:
    """Folder for a zoo name; any other name or path unchanged, for `from_pretrained` to judge.

    A folder of the user's own called `foveate/...` wins over the zoo.
    """
    if name_or_path.startswith(_PREFIX) and not Path(name_or_path).exists():
        return str(path(name_or_path))
    return name_or_path
