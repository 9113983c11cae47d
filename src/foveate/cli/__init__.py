"""The command line: `foveate ask | chat | methods | scenes | train | convert ...`."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from foveate.errors import FoveateError, TunedElsewhereWarning

FAILED, INTERRUPTED = 1, 130
"""Exit codes. Wrong usage (unknown options, missing arguments) is 2, as the parser of arguments has it."""


def main() -> None:
    """Entry point. Errors of our own, of the system about a file, of memory that does not suffice and of packages that
    are not installed are one readable line and exit code 1."""
    try:
        from foveate.cli.app import app
    except ImportError as error:
        sys.exit(f"foveate: {error}. The command line needs `pip install 'foveate[cli]'`.")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", TunedElsewhereWarning)
            warnings.showwarning = _showing(warnings.showwarning)
            app(prog_name="foveate")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        if (told := _told(error)) is None:
            raise
        _say("error", "red", told)
        sys.exit(FAILED)


def _told(error: Exception) -> str | None:
    """What a user is told of an error; None for one that is a mistake of ours."""
    if isinstance(error, FoveateError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "foveate").partition(".")[0]
        return None if package == "foveate" else f"the package {package} is not installed: pip install {package}."
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory: {str(error).partition('. ')[0]}. Use fewer tokens, rows or a smaller dtype."
    if isinstance(error, OSError):  # a full disk, a folder that vanished: what no check beforehand can know
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}."
    return None


def _showing(before: Any) -> Any:
    def show(message: Any, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, TunedElsewhereWarning):
            _say("warning", "yellow", str(message))
        else:
            before(message, category, *rest, **more)

    return show


def _say(kind: str, colour: str, message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    from foveate.cli.show import harmless

    line = " ".join(harmless(message).split("\n"))
    Console(stderr=True).print(Text.assemble((f"{kind}:", colour), f" {line}"), highlight=False, soft_wrap=True)


__all__ = ["main"]
