"""The command line in this process."""

from __future__ import annotations

import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest

from foveate.cli import main


@dataclass
class Done:
    """What a finished command printed."""

    returncode: int
    stdout: str
    stderr: str


def foveate(*args: str | Path, columns: int = 160) -> Done:
    """Run a command in this process, as the console script would."""
    out, err, code = StringIO(), StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["foveate", *map(str, args)])
        patch.setenv("COLUMNS", str(columns))
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    return Done(code, out.getvalue(), err.getvalue())
