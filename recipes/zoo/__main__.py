"""`python -m recipes.zoo --out FOLDER`: train a model of the zoo from its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foveate.errors import FoveateError
from recipes.zoo.train import train


def zoo(
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, log.jsonl and the finished model.")],
    config: Annotated[str, typer.Option(help="A YAML file, or a name in recipes/zoo/configs.")] = "qwen2_5_vl.yaml",
) -> None:
    """Train a small model on rendered scenes. Run the same command again to resume."""
    try:
        folder = train(config, out)
    except FoveateError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(f"model in {folder}")


if __name__ == "__main__":
    typer.run(zoo)
