"""A method from what a user wrote: its text with a budget, or the file that `foveate tune` left."""

from __future__ import annotations

from typing import Any

from foveate.core.method import Method
from foveate.errors import FoveateError
from foveate.specs.settings import setting
from foveate.specs.tuned import TunedFileError


def choose_method(name: str, *, keep: float | int | None = None, model: str = "", **parameters: Any) -> Method | None:
    """The configured method that a text and its parameters ask for.

    Args:
        name: a method's text (`vitcop`, `vitcop:deep_layer=20`, `fastervlm + fastv`; see `grammar`), `none` or
            `unpruned`, or the path of a `foveate.json`.
        keep: the budget; for a method that finds its own number of tokens, the most it may keep.
        model: folder or name of the model; a trained module is looked for in its folder `glimpse`.
        parameters: further ones of the method.

    Returns:
        The method, or None for no pruning.

    Raises:
        ConfigurationError: unknown name or parameter, a method that needs a module where there is none, or
            parameters without effect.
        TunedFileError: an unusable foveate.json.
    """
    if not name.endswith(".json"):
        return setting(name, keep, model, **parameters).make()
    chosen = setting(name, keep, model, **parameters)
    try:
        return chosen.make()
    except (FoveateError, TypeError) as error:
        raise TunedFileError(f"{name}: {error}") from error
