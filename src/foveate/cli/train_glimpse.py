"""`foveate train glimpse`: train GlimpsePrune's predictor for a model, which itself stays as it is."""

from __future__ import annotations

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from foveate.errors import ConfigurationError
from foveate.files.outputs import check_packages

Weights = Annotated[
    list[str] | None, typer.Option("--loss", metavar="NAME=VALUE", help="Any field of Objective, e.g. language=0.")
]
Pairs = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any field of TrainingArguments.")]
ModulePairs = Annotated[
    list[str] | None, typer.Option("--module", metavar="NAME=VALUE", help="Any field of GlimpseConfig, in JSON.")
]


class ObjectiveKind(StrEnum):
    """Training objectives."""

    boxes = "boxes"
    distill = "distill"
    both = "both"


class BoxFormats(StrEnum):
    """Conventions of boxes in a table."""

    pixel = "pixel"
    pixel_xywh = "pixel_xywh"
    normalized = "normalized"
    thousandths = "thousandths"


def glimpse(
    model: Annotated[str, typer.Option(help="Base model: hub id, folder or zoo name.")],
    data: Annotated[str, typer.Option(help="Table (.jsonl, .json, .parquet, saved dataset) or scenes[:SPLIT].")],
    out: Annotated[Path, typer.Option(help="Folder for the module and its checkpoints.")],
    objective: Annotated[
        ObjectiveKind, typer.Option(help="boxes: evidence boxes; distill: no labels needed.")
    ] = ObjectiveKind.boxes,
    eval_data: Annotated[str | None, typer.Option(help="Evaluate on this at every eval_steps.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first rows only.")] = None,
    eval_limit: Annotated[int, typer.Option(min=1, help="The same for evaluation.")] = 200,
    patience: Annotated[int | None, typer.Option(min=1, help="Stop after so many worse evaluations.")] = None,
    box_format: Annotated[BoxFormats, typer.Option(help="Boxes in the table.")] = BoxFormats.pixel,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unusable rows out and count them.")] = False,
    keep_target: Annotated[float, typer.Option(min=0, max=1, help="distill: wanted kept fraction.")] = 0.1,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    attention: Annotated[str, typer.Option(help="Backend of the base; distillation: sdpa or eager.")] = "sdpa",
    start: Annotated[str | None, typer.Option(help="Go on from this module instead of a fresh one.")] = None,
    shard: Annotated[bool, typer.Option("--shard", help="Divide the base model among the processes.")] = False,
    seeds: Annotated[int | None, typer.Option(min=1, help="Train so many times, in OUT/seed-N.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last complete checkpoint.")] = False,
    weights: Weights = None,
    arguments: Pairs = None,
    module: ModulePairs = None,
) -> None:
    """Train a glimpse module for a frozen model. bf16, checkpointing, logging and so on: --set NAME=VALUE."""
    check_packages("`foveate train glimpse`", "train", "accelerate", "matplotlib", "yaml")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are forked from a process that has used it
    from foveate.training.glimpse.run import GlimpseSettings, check_done, train

    settings = GlimpseSettings(
        model=model,
        data=data,
        out=out,
        objective=_objective(objective, keep_target, weights),
        eval_data=eval_data,
        limit=limit,
        eval_limit=eval_limit,
        patience=patience,
        attention=attention,
        box_format=box_format.value,
        skip_bad=skip_bad,
        system=system,
        start=start,
        module={name: value(text) for name, text in pairs(module, "--module").items()},
        arguments=pairs(arguments, "--set"),
        shard=shard,
        resume=resume,
    )
    if seeds is None:
        _report(out, train(settings))
    else:
        repeat(settings, seeds, train, check_done)
    leave_group()


def repeat(settings: Any, seeds: int, train: Any, check_done: Any) -> None:
    """The run with several seeds, and a line for every metric that was measured."""
    from foveate.training.seeds import lines, train_seeds

    say("\n".join([f"runs in {settings.out}", *lines(train_seeds(settings, seeds, train, check_done))]))


def leave_group() -> None:
    """Ends distributed training together: a process that ends while others still talk to it aborts."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def say(text: str) -> None:
    """A line about the whole run, by one of several processes."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(text)


def _report(out: Path, metrics: dict[str, float]) -> None:
    kept = f"; kept {metrics['eval_kept']:.1%} of the visual tokens" if "eval_kept" in metrics else ""
    say(f"module in {out}{kept}")


def _objective(kind: ObjectiveKind, keep_target: float, weights: list[str] | None) -> Any:
    from foveate.training.glimpse.objectives import Objective

    boxes, distill = float(kind != ObjectiveKind.distill), float(kind != ObjectiveKind.boxes)
    fields = {"localization": boxes, "language": boxes, "distillation": distill, "keep_target": keep_target}
    given = {name: value(text) for name, text in pairs(weights, "--loss").items()}
    unknown = given.keys() - Objective.__dataclass_fields__.keys()
    if unknown:
        known = ", ".join(Objective.__dataclass_fields__)
        raise ConfigurationError(f"--loss: there is no {', '.join(sorted(unknown))}; choose from {known}")
    return Objective(**(fields | given))


def pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    """`NAME=VALUE` options as a mapping."""
    pairs = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigurationError(f"{option} {text}: expected NAME=VALUE")
        pairs[name] = value
    return pairs


def value(text: str) -> Any:
    """JSON where it is, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
