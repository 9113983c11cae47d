"""What lies beside a model: the glimpse module that was trained for it."""

from __future__ import annotations

from pathlib import Path

from foveate import zoo
from foveate.errors import ConfigurationError


def module_beside(method: str, model: str) -> Path:
    """The folder `glimpse` of a model's folder.

    Raises:
        ConfigurationError: there is none.
    """
    beside = Path(zoo.resolve(model)) / "glimpse"
    if not model or not beside.is_dir():
        where = f" (there is none at {beside})" if model else ""
        raise ConfigurationError(f"{method} needs a trained module: give the folder of one as `module`{where}.")
    return beside
