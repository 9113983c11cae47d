"""`foveate methods`: what there is."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer
from rich.console import Console

from foveate.cli.show import add_row, make_table


def methods(name: Annotated[str | None, typer.Argument(help="Show one method in full.")] = None) -> None:
    """List the pruning methods with parameters and whether they are verified (`foveate families`: on which models)."""
    from foveate.methods import find, parameters_of, registry

    if name is not None:
        kind = find(name)
        typer.echo(f"{kind.name}\n\n{(kind.__doc__ or '').strip()}")
        return
    headers = ["method", "parameters (default)", "verified", "paper"]
    table = make_table(headers, left=True, show_lines=True)
    for key, kind in registry().items():
        parameters = ", ".join(f"{name}={_short(value)}" for name, value in parameters_of(kind).items())
        add_row(table, key, parameters, kind.verified or "no", kind.paper or "-")
    Console().print(table)


def _short(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "?"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
