"""The whole GlimpsePrune+ schedule from one YAML file; the same command goes on after a kill at any stage."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from rich.console import Console

from foveate.errors import ConfigurationError
from foveate.files.outputs import check_folder
from foveate.files.yaml_files import check_keys, check_mapping, read_yaml
from foveate.glimpse.module import WEIGHTS, GlimpseModule
from foveate.training.glimpse import run as supervised
from foveate.training.glimpse.objectives import Objective
from foveate.training.plus import run as rl
from foveate.training.plus.merge import merge
from foveate.training.plus.rollouts import check_kind
from foveate.training.processes import from_first, is_first, together
from foveate.training.runs import SUMMARY

T = TypeVar("T")


@dataclass(frozen=True)
class Schedule:
    """What a schedule file says.

    Attributes:
        model, data, out: base model, data of every stage unless the stage names its own, folder of the results.
        module: a trained glimpse module of the base model; then the stage `glimpse` is left out.
        glimpse: settings of the first supervised stage (`training.glimpse.run.GlimpseSettings`).
        rl: settings of the reinforcement-learning stage (`training.plus.run.PlusSettings`).
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
    raw = read_yaml(path, ConfigurationError)
    check_mapping(raw, str(path), ConfigurationError)
    raw |= {} if out is None else {"out": out}
    raw |= {name: {} for name in ("glimpse", "rl", "retrain") if name in raw and raw[name] is None}
    schedule: Schedule = _checked(Schedule, raw, str(path))
    schedule = dataclasses.replace(schedule, out=Path(schedule.out))
    for stage in (schedule.glimpse, schedule.rl, schedule.retrain):
        if stage is not None and not isinstance(stage, dict):
            raise ConfigurationError(f"{path}: a stage is a mapping of settings, not {type(stage).__name__}")
    check_folder(schedule.out)
    _check(schedule)
    return schedule


def _check(schedule: Schedule) -> None:
    """Builds what the stages build from their settings: an error in the last one shall not show after hours."""
    first, middle, last = _settings(schedule)
    rl.grpo_arguments(middle)  # joins several processes, with a patience that suits a judge
    for stage in (first, last):
        if stage is not None:
            supervised.training_arguments(stage)
    if middle.lora is None:
        raise ConfigurationError("rl: lora: a schedule merges an adapter; give its fields, or {} as published")
    rl.make_adapter(middle, None)
    with TemporaryDirectory() as folder:  # the judge opens its cache
        rl.make_rewards(dataclasses.replace(middle, out=Path(folder)))
    check_kind(middle.prune)


def _checked(kind: type[T], values: dict[str, Any], where: str) -> T:
    check_keys(kind, values, where, ConfigurationError)
    return kind(**values)


def _settings(
    schedule: Schedule,
) -> tuple[supervised.GlimpseSettings | None, rl.PlusSettings, supervised.GlimpseSettings]:
    """Settings of the three training stages."""
    common = {"model": schedule.model, "data": schedule.data, "resume": True}
    merged = str(schedule.out / "merged")
    first = None
    if schedule.module is None and schedule.glimpse is not None:
        first = _glimpse({**common, **schedule.glimpse, "out": schedule.out / "glimpse"}, "glimpse")
    module = schedule.module or (None if first is None else str(schedule.out / "glimpse"))
    middle = _checked(
        rl.PlusSettings, {**common, "module": module, **(schedule.rl or {}), "out": schedule.out / "rl"}, "rl"
    )
    last = {**common, **(schedule.retrain or schedule.glimpse or {}), "out": schedule.out / "retrain"}
    return first, middle, _glimpse({**last, "model": merged}, "retrain")


def _glimpse(values: dict[str, Any], where: str) -> supervised.GlimpseSettings:
    objective = _checked(Objective, values.pop("objective", {}), f"{where}: objective")
    return _checked(supervised.GlimpseSettings, {**values, "objective": objective}, where)


def run(schedule: Schedule) -> Path:
    """Every stage that is not done yet; returns the merged model's folder, with its module in `glimpse/`.

    Raises:
        ConfigurationError: a stage was done with other settings than the schedule has now.
        FoveateError: what the stages raise.
    """
    console = Console(stderr=True, quiet=not is_first())
    for stage in _stages(schedule):
        if from_first(stage.done.exists):
            with together():
                stage.check()
            console.print(f"stage {stage.name}: done before ({stage.done})", markup=False, emoji=False)
            continue
        console.print(f"stage {stage.name}", markup=False, emoji=False)
        stage.work()
        gc.collect()  # TRL's trainer and its model refer to each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return from_first(lambda: _assemble(schedule.out / "merged", schedule.out / "retrain"))


@dataclass(frozen=True)
class _ScheduledStage:
    """A stage: the file that it leaves, what it does, and what refuses results of other settings."""

    name: str
    done: Path
    work: Callable[[], Any]
    check: Callable[[], None]


def _stages(schedule: Schedule) -> list[_ScheduledStage]:
    first, middle, last = _settings(schedule)
    merged = schedule.out / "merged"

    def glimpse(name: str, settings: Callable[[], supervised.GlimpseSettings], out: Path) -> _ScheduledStage:
        return _ScheduledStage(
            name, out / SUMMARY, lambda: supervised.train(settings()), lambda: supervised.check_done(settings())
        )

    return [
        *([] if first is None else [glimpse("glimpse", lambda: first, first.out)]),
        _ScheduledStage("rl", middle.out / SUMMARY, lambda: rl.train(middle), lambda: rl.check_done(middle)),
        _ScheduledStage(
            "merge", merged, lambda: from_first(lambda: merge(middle.model, middle.out, merged)), lambda: None
        ),
        glimpse("retrain", lambda: _with_threshold(last, middle.out), last.out),
    ]


def _with_threshold(settings: supervised.GlimpseSettings, rl_out: Path) -> supervised.GlimpseSettings:
    """The last stage, its fresh module beginning with the threshold that was learned, if one was."""
    learned = json.loads((rl_out / SUMMARY).read_text(encoding="utf-8")).get("threshold")
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
