"""The whole GlimpsePrune+ schedule from one YAML file; the same command goes on after a kill at any stage."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, get_args

import torch
from rich.console import Console

from foveate.errors import ConfigurationError
from foveate.glimpse.module import WEIGHTS, GlimpseModule
from foveate.glimpse.plus import run as rl
from foveate.glimpse.plus.merge import merge
from foveate.glimpse.plus.rollouts import Prune
from foveate.glimpse.train import run as supervised
from foveate.glimpse.train.objectives import Objective

T = TypeVar("T")
DONE = "training.json"
STAGES = ("glimpse", "rl", "merge", "retrain")


@dataclass(frozen=True)
class Schedule:
    """What a schedule file says.

    Attributes:
        model, data, out: base model, data of every stage unless the stage names its own, folder of the results.
        module: a trained glimpse module of the base model; then the stage `glimpse` is left out.
        glimpse: settings of the first supervised stage (`glimpse.train.run.Settings`).
        rl: settings of the reinforcement-learning stage (`plus.run.Settings`).
        retrain: settings of the last supervised stage, on the merged model.
    """

    model: str
    data: str
    out: Path
    module: str | None = None
    glimpse: dict[str, Any] | None = None
    rl: dict[str, Any] | None = None
    retrain: dict[str, Any] | None = None


def read(path: Path, out: Path | None = None) -> Schedule:
    """A schedule file; `out` overrides its folder.

    Raises:
        ConfigurationError: missing, malformed, unknown or missing keys.
    """
    import yaml

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigurationError(f"{path}: expected keys and values, found {type(raw).__name__}")
    raw |= {} if out is None else {"out": out}
    raw |= {name: {} for name in ("glimpse", "rl", "retrain") if name in raw and raw[name] is None}
    schedule: Schedule = _checked(Schedule, raw, str(path))
    schedule = dataclasses.replace(schedule, out=Path(schedule.out))
    for stage in (schedule.glimpse, schedule.rl, schedule.retrain):
        if stage is not None and not isinstance(stage, dict):
            raise ConfigurationError(f"{path}: a stage is a mapping of settings, not {type(stage).__name__}")
    _check(schedule)
    return schedule


def _check(schedule: Schedule) -> None:
    """Builds what the stages build from their settings: an error in the last one shall not show after hours."""
    first, middle, last = _settings(schedule)
    for stage in (first, last):
        if stage is not None:
            supervised.training_arguments(stage)
    if middle.lora is None:
        raise ConfigurationError("rl: lora: a schedule merges an adapter; give its fields, or {} as published")
    rl.grpo_arguments(middle)
    rl.make_adapter(middle, None)
    with TemporaryDirectory() as folder:  # the judge opens its cache
        rl.make_rewards(dataclasses.replace(middle, out=Path(folder)))
    if middle.prune not in get_args(Prune):
        raise ConfigurationError(f"rl: prune={middle.prune!r}: choose from {', '.join(get_args(Prune))}")


def _checked(kind: type[T], values: dict[str, Any], where: str) -> T:
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(fields)):
        raise ConfigurationError(f"{where}: unknown {', '.join(unknown)}; known are {', '.join(fields)}")
    missing = dataclasses.MISSING
    needed = [n for n, f in fields.items() if f.default is missing and f.default_factory is missing]
    if absent := [n for n in needed if n not in values]:
        raise ConfigurationError(f"{where}: {', '.join(absent)} missing")
    return kind(**values)


def _settings(schedule: Schedule) -> tuple[supervised.Settings | None, rl.Settings, supervised.Settings]:
    """Settings of the three training stages."""
    common = {"model": schedule.model, "data": schedule.data, "resume": True}
    merged = str(schedule.out / "merged")
    first = None
    if schedule.module is None and schedule.glimpse is not None:
        first = _glimpse({**common, **schedule.glimpse, "out": schedule.out / "glimpse"}, "glimpse")
    module = schedule.module or (None if first is None else str(schedule.out / "glimpse"))
    middle = _checked(
        rl.Settings, {**common, "module": module, **(schedule.rl or {}), "out": schedule.out / "rl"}, "rl"
    )
    last = {**common, **(schedule.retrain or schedule.glimpse or {}), "out": schedule.out / "retrain"}
    return first, middle, _glimpse({**last, "model": merged}, "retrain")


def _glimpse(values: dict[str, Any], where: str) -> supervised.Settings:
    objective = _checked(Objective, values.pop("objective", {}), f"{where}: objective")
    return _checked(supervised.Settings, {**values, "objective": objective}, where)


def run(schedule: Schedule) -> Path:
    """Every stage that is not done yet; returns the merged model's folder, with its module in `glimpse/`.

    Raises:
        FoveateError: what the stages raise.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigurationError(
            "a schedule runs in one process; run its stages one by one (train glimpse, train plus, merge, train "
            "glimpse) with accelerate or torchrun"
        )
    first, middle, last = _settings(schedule)
    out = schedule.out
    steps: list[tuple[str, Path, Callable[[], Any]]] = []
    if first is not None:
        steps.append(("glimpse", first.out / DONE, lambda: supervised.train(first)))
    steps += [
        ("rl", middle.out / DONE, lambda: rl.train(middle)),
        ("merge", out / "merged", lambda: merge(middle.model, middle.out, out / "merged")),
        ("retrain", last.out / DONE, lambda: supervised.train(_with_threshold(last, middle.out))),
    ]
    console = Console(stderr=True)
    for name, done, work in steps:
        if done.exists():
            console.print(f"stage {name}: done before ({done})")
            continue
        console.print(f"stage {name}")
        work()
        gc.collect()  # TRL's trainer and its model refer to each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return _assemble(out / "merged", last.out)


def _with_threshold(settings: supervised.Settings, rl_out: Path) -> supervised.Settings:
    """The last stage, its fresh module beginning with the threshold that was learned, if one was."""
    learned = json.loads((rl_out / DONE).read_text(encoding="utf-8")).get("threshold")
    if learned is None or settings.start is not None:
        return settings
    return dataclasses.replace(settings, module={"threshold": learned, **settings.module})


def _assemble(merged: Path, module: Path) -> Path:
    """The module beside the merged weights, where `foveate ask --method glimpse` finds it."""
    target = merged / "glimpse"
    partial = merged / "glimpse.partial"
    shutil.rmtree(partial, ignore_errors=True)
    GlimpseModule.from_pretrained(module).save_pretrained(partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)
    assert (target / WEIGHTS).is_file()
    return merged
