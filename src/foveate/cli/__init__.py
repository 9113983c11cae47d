"""The command line: `foveate ask | methods | scenes | train | convert ...`."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from foveate.errors import FoveateError, TunedElsewhereWarning


def main() -> None:
    """Entry point. Errors of our own, of the system about a file, of memory that does not suffice and of packages that
    are not installed are one readable line and exit code 2."""
    try:
        from foveate.cli.app import app
    except ImportError as error:
        sys.exit(f"foveate: {error}. The command line needs `pip install 'foveate[cli]'`.")
    shown_before = warnings.showwarning

    def show(message: Any, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, TunedElsewhereWarning):
            _say("warning", "yellow", str(message))
        else:
            shown_before(message, category, *rest, **more)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", TunedElsewhereWarning)
            warnings.showwarning = show
            app()
    except FoveateError as error:
        _say("error", "red", str(error))
        sys.exit(2)
    except ModuleNotFoundError as error:
        if (error.name or "foveate").partition(".")[0] == "foveate":
            raise
        _say("error", "red", f"the package {error.name} is not installed: pip install {error.name}.")
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":
            raise
        _say(
            "error",
            "red",
            f"out of memory: {str(error).partition('. ')[0]}. Use fewer tokens, rows or a smaller dtype.",
        )
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that vanished: what no check beforehand can know
        _say("error", "red", f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}.")
        sys.exit(2)


def _say(kind: str, colour: str, message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    from foveate.cli.show import harmless

    line = " ".join(harmless(message).split("\n"))
    Console(stderr=True).print(Text.assemble((f"{kind}:", colour), f" {line}"), highlight=False, soft_wrap=True)


__all__ = ["main"]
