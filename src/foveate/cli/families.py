"""`foveate families` and `foveate doctor`: which models can be pruned, and with what."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from foveate.cli.show import add_row, make_table


def families() -> None:
    """List the model types that can be pruned, what their vision towers can be read for, and who cannot be."""
    from foveate.cli.families_table import HEADERS, rows

    table = make_table(list(HEADERS), left=True, show_lines=True)
    for row in rows():
        add_row(table, *row)
    Console().print(table)


def doctor(model: Annotated[str, typer.Option(help="Folder or Hub id; only its config.json is read.")]) -> None:
    """Say what will work on a checkpoint, before its weights are loaded."""
    from foveate.inference.doctor import of_checkpoint

    found = of_checkpoint(model)
    typer.echo(f"{model}: {found.model_type}, decoder layers: {found.layers}, inputs: {', '.join(found.modalities)}")
    typer.echo(f"received attention of the vision tower: {found.signal}")
    for name, why in found.otherwise.items():
        typer.echo(f"  {name}: {why}")
    for name, why in found.cannot.items():
        typer.echo(f"  {name} cannot run with its defaults: {why}")
    if not found.cannot:
        typer.echo("every method can run")
