"""`foveate convert`: other projects' checkpoints in this library's format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def glimpse(
    source: Annotated[Path, typer.Argument(help="Folder with config.json and new_modules_gp.pt.")],
    destination: Annotated[Path, typer.Argument(help="New folder.")],
) -> None:
    """Convert an official GlimpsePrune checkpoint; the pickle is read without running any of its code."""
    from foveate.files.outputs import check_folder
    from foveate.glimpse import convert

    check_folder(destination)
    module = convert(source, destination)
    count = sum(p.numel() for p in module.parameters())
    typer.echo(f"{count:,} parameters for {module.config.family} in {destination}")
