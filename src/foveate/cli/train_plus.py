"""`foveate train plus` and `foveate merge`: reinforcement learning on pruned inputs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from foveate.cli.train_glimpse import BoxFormats, leave_group, pairs, repeat, say, value
from foveate.errors import ConfigurationError
from foveate.files.outputs import check_folder, check_packages


class Prune(StrEnum):
    """What rollouts are pruned by."""

    boxes = "boxes"
    glimpse = "glimpse"
    none = "none"


def plus(
    context: typer.Context,
    out: Annotated[Path | None, typer.Option(help="Folder for the adapter and its checkpoints.")] = None,
    model: Annotated[str | None, typer.Option(help="Base model: hub id, folder or zoo name.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Table (.jsonl, .json, .parquet, saved dataset) or scenes[:SPLIT].")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Run a whole schedule from this YAML file instead.")] = None,
    module: Annotated[str | None, typer.Option(help="Trained glimpse module.")] = None,
    prune: Annotated[Prune, typer.Option(help="boxes: evidence boxes; glimpse: the module.")] = Prune.boxes,
    layer: Annotated[int | None, typer.Option(min=0, help="Prune after this layer (default: the module's).")] = None,
    reward: Annotated[list[str] | None, typer.Option(metavar="NAME[=WEIGHT]", help="May be repeated.")] = None,
    judge_model: Annotated[str | None, typer.Option(help="Model that the reward `judge` asks.")] = None,
    judge_url: Annotated[str, typer.Option(help="OpenAI-compatible endpoint.")] = "http://localhost:8000/v1",
    learn_threshold: Annotated[bool, typer.Option("--learn-threshold", help="Threshold as policy.")] = False,
    screen: Annotated[
        int, typer.Option(min=0, help="Sample every question so often first; train on those with unequal rewards.")
    ] = 0,
    screen_file: Annotated[Path | None, typer.Option(help="Where to keep that (default: in OUT).")] = None,
    first: Annotated[int, typer.Option(min=0, help="Row to begin with, counted from 0.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first rows only.")] = None,
    eval_data: Annotated[str | None, typer.Option(help="Evaluate on this at every eval_steps.")] = None,
    eval_limit: Annotated[int, typer.Option(min=1, help="The same for evaluation.")] = 200,
    patience: Annotated[int | None, typer.Option(min=1, help="Stop after so many worse evaluations.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Train so many times, in OUT/seed-N.")] = None,
    box_format: Annotated[BoxFormats, typer.Option(help="Boxes in the table.")] = BoxFormats.pixel,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unusable rows out and count them.")] = False,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    shard: Annotated[bool, typer.Option("--shard", help="Divide the base model among the processes.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last complete checkpoint.")] = False,
    full: Annotated[bool, typer.Option("--full", help="No adapter: train the language model itself.")] = False,
    lora: Annotated[list[str] | None, typer.Option("--lora", help="NAME=VALUE, any field of LoraConfig.")] = None,
    arguments: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE, any field of GRPOConfig.")] = None,
) -> None:
    """Fine-tune a model by reinforcement learning on pruned inputs (GlimpsePrune+)."""
    judged = ["openai"] if judge_model is not None else []
    check_packages("`foveate train plus`", "train", "accelerate", "datasets", "trl", "peft", "yaml", *judged)
    if config is not None:
        _run_schedule(context, config, out)
        return
    if model is None or data is None or out is None:
        raise ConfigurationError("give --model, --data and --out, or a whole schedule with --config")
    from foveate.training.plus.run import PlusSettings

    settings = PlusSettings(
        model=model,
        data=data,
        out=out,
        module=module,
        prune=prune.value,
        layer=layer,
        rewards=_rewards(reward),
        judge=None if judge_model is None else {"model": judge_model, "base_url": judge_url},
        learn_threshold=learn_threshold,
        screen=screen,
        screen_file=screen_file,
        first=first,
        limit=limit,
        eval_data=eval_data,
        eval_limit=eval_limit,
        patience=patience,
        box_format=box_format.value,
        skip_bad=skip_bad,
        system=system,
        lora=None if full else {name: value(text) for name, text in pairs(lora, "--lora").items()},
        arguments=pairs(arguments, "--set"),
        shard=shard,
        resume=resume,
    )
    _train(settings, seeds)


def _train(settings: Any, seeds: int | None) -> None:
    from foveate.training.plus.run import check_done, train

    if seeds is None:
        train(settings)
        say(f"{'model' if settings.lora is None else 'adapter'} in {settings.out}")
    else:
        repeat(settings, seeds, train, check_done)
    leave_group()


def _run_schedule(context: typer.Context, config: Path, out: Path | None) -> None:
    given = [name for name in context.params if "COMMANDLINE" in str(context.get_parameter_source(name))]
    if other := [f"--{name.replace('_', '-')}" for name in given if name not in ("config", "out")]:
        raise ConfigurationError(f"--config describes the whole schedule; write {', '.join(other)} into it")
    from foveate.training.plus.schedule import read, run

    folder = run(read(config, out))
    leave_group()
    say(f"model in {folder}")


def _rewards(given: list[str] | None) -> dict[str, float]:
    weights: dict[str, float] = {}
    for text in given or ["exact_match"]:
        name, _, weight = text.partition("=")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            raise ConfigurationError(f"--reward {text}: {weight!r} is not a number") from None
    return weights


def merge(
    model: Annotated[str, typer.Option(help="Base model that the adapter was trained on.")],
    adapter: Annotated[Path, typer.Option(help="Folder with adapter_model.safetensors.")],
    out: Annotated[Path, typer.Option(help="New folder for the merged model.")],
    dtype: Annotated[str, typer.Option(help="Of the weights written; auto: the base's.")] = "auto",
) -> None:
    """Merge a LoRA adapter into its base model."""
    from foveate.training.plus.merge import merge as merged

    check_packages("`foveate merge`", "train", "peft")
    check_folder(out)
    typer.echo(f"model in {merged(model, adapter, out, dtype)}")
