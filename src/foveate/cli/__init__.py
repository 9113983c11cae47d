"""The command line: `foveate ask | methods | scenes | train | convert ...`."""

from __future__ import annotations

import sys

from foveate.errors import FoveateError


def main() -> None:
    """Entry point; errors of our own are one readable line and exit code 2."""
    try:
        from foveate.cli.app import app
    except ImportError as error:
        sys.exit(f"foveate: {error}. The command line needs `pip install 'foveate[cli]'`.")
    try:
        app()
    except FoveateError as error:
        from rich.console import Console
        from rich.markup import escape

        Console(stderr=True).print(
            f"[red]error:[/red] {escape(str(error))}", highlight=False, markup=True, soft_wrap=True
        )
        sys.exit(2)


__all__ = ["main"]
