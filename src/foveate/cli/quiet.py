"""Loading without bars and remarks of other libraries, unless `--verbose` asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_loud = False


def be_loud(loud: bool) -> None:
    """Whether what follows says all that other libraries say."""
    global _loud
    _loud = loud


def quietly(command: Callable[P, R]) -> Callable[P, R]:
    """A command in which transformers says nothing but errors. Bars of downloads stay: they are what one waits for."""

    @wraps(command)
    def run(*args: P.args, **options: P.kwargs) -> R:
        if _loud:
            return command(*args, **options)
        with _hushed():
            return command(*args, **options)

    return run


@contextmanager
def _hushed() -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    downloads = not are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if downloads:  # transformers has turned them off too
        enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
