"""A whole training run: data, models, trainer, results."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from transformers import TrainingArguments, set_seed

from foveate import zoo
from foveate.data.reading import read_rows
from foveate.data.rows import Rows, Rules
from foveate.errors import ConfigurationError
from foveate.families import adapt
from foveate.glimpse.module import WEIGHTS, GlimpseModule
from foveate.glimpse.official import load_module
from foveate.training.glimpse.answers import fill_answers
from foveate.training.glimpse.arguments import parse_arguments
from foveate.training.glimpse.collate import Collator
from foveate.training.glimpse.common import (
    RunSettings,
    check_resumed,
    check_weights,
    load_base,
    place,
    told_of_a_full_disk,
    write_summary,
)
from foveate.training.glimpse.model import GlimpseForTraining
from foveate.training.glimpse.objectives import Objective
from foveate.training.glimpse.trainer import GlimpseTrainer
from foveate.training.rows import check_for, tracked

PUBLISHED = {
    "learning_rate": 1e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,  # below 1: a fraction of all steps
    "num_train_epochs": 1,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
}
"""GlimpsePrune's optimiser settings."""

_DEFAULTS = {"logging_steps": 10, "save_steps": 500, "save_total_limit": 2, "report_to": "none", "seed": 0}
_OURS = {"remove_unused_columns": False, "prediction_loss_only": False}


@dataclass(frozen=True)
class GlimpseSettings(RunSettings):
    """What to train, on what, and where to put it (`config.json`, `model.safetensors`, `training.json`).

    `arguments` are fields of `transformers.TrainingArguments` that differ from `PUBLISHED`.

    Attributes:
        eval_data: as `data`; `eval_limit` takes the first rows only.
        start: module to go on from (folder or hub id); None: a fresh one.
        module: fields of `GlimpseConfig` that differ from the defaults for this model.
    """

    objective: Objective = field(default_factory=Objective)
    eval_data: str | None = None
    eval_limit: int | None = 200
    start: str | None = None
    module: dict[str, Any] = field(default_factory=dict)


def training_arguments(settings: GlimpseSettings) -> TrainingArguments:
    """`TrainingArguments`; values may be strings, as they come from a command line.

    Raises:
        ConfigurationError: an unknown name or a value of the wrong kind.
    """
    given = {**PUBLISHED, **_DEFAULTS, **settings.arguments, **_OURS, "output_dir": str(settings.out)}
    if settings.eval_data is not None and "eval_strategy" not in settings.arguments:
        given |= {"eval_strategy": "steps", "eval_steps": given.get("eval_steps", given["save_steps"])}
    return parse_arguments(TrainingArguments, given)


def train(settings: GlimpseSettings) -> dict[str, float]:
    """Train a glimpse module and write it to `settings.out`; returns the final metrics.

    Raises:
        FoveateError: anything the user can mend: data, models, settings, an output folder in use.
    """
    arguments = training_arguments(settings)
    checkpoint = place(settings, WEIGHTS)
    data, eval_data = _load_data(settings)  # before the models: a bad row shall not cost minutes
    check_resumed(settings, checkpoint, arguments)
    set_seed(arguments.seed)
    model, collator, start = _load_models(settings)
    check_weights(settings, checkpoint, base=model.base, start=start)
    data = check_for(collator.family, collator.processor, data, settings.skip_bad, settings.system)
    if eval_data is not None:
        eval_data = check_for(collator.family, collator.processor, eval_data, settings.skip_bad)
    model.to(arguments.device)
    with arguments.main_process_first(desc="answers"):  # the others then find them in the file
        examples = fill_answers(model.base, collator, data, settings.out / "answers.jsonl")
    with model, told_of_a_full_disk(settings.out):
        trainer = GlimpseTrainer(
            model,
            arguments,
            data_collator=collator,
            train_dataset=examples,
            eval_dataset=eval_data,
        )
        result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        metrics = dict(result.metrics)
        if eval_data is not None:
            metrics |= _evaluated_now(trainer) or trainer.evaluate()
        trainer.save_model()
    if trainer.is_world_process_zero():
        results = {"rows": len(examples), "rows_skipped": len(data.skipped), "metrics": metrics}
        write_summary(settings, arguments, tuple(PUBLISHED), results)
    return metrics


def check_done(settings: GlimpseSettings) -> None:
    """Refuse a finished run in the settings' folder that was started with others.

    Raises:
        ConfigurationError: naming every difference.
    """
    check_resumed(settings, settings.out, training_arguments(settings))


def _evaluated_now(trainer: GlimpseTrainer) -> dict[str, float]:
    """Metrics of an evaluation that has just taken place, at the last step."""
    history = [entry for entry in trainer.state.log_history if entry["step"] == trainer.state.global_step]
    found = [entry for entry in history if "eval_loss" in entry]
    return {name: value for name, value in found[-1].items() if name.startswith("eval_")} if found else {}


def _load_data(settings: GlimpseSettings) -> tuple[Rows, Rows | None]:
    objective = settings.objective
    rules = Rules(
        box_format=settings.box_format,
        needs_boxes=objective.uses_boxes,
        needs_answer=objective.supervised,
        skip_bad=settings.skip_bad,
    )
    data = read_rows(settings.data, rules, settings.limit, progress=tracked)
    if settings.eval_data is None:
        return data, None
    # Evaluation must be comparable between runs, so every row needs its answer.
    checked = read_rows(settings.eval_data, replace(rules, needs_answer=True), settings.eval_limit, progress=tracked)
    return data, checked


def _load_models(settings: GlimpseSettings) -> tuple[GlimpseForTraining, Collator, GlimpseModule | None]:
    if settings.start is not None and settings.module:
        raise ConfigurationError("a module to start from brings its own configuration; give only one of both")
    base, processor = load_base(settings)
    if settings.start is not None:
        module = load_module(settings.start).float()
    else:
        module = GlimpseModule.for_model(base, **{"base_model": settings.model, **settings.module})
    # Zoo models only know prompts with the system message that they were trained with.
    from_zoo = zoo.resolve(settings.model) != settings.model
    system = zoo.SYSTEM if settings.system is None and from_zoo else settings.system
    collator = Collator(adapt(base), processor, system=system, with_boxes=settings.objective.uses_boxes)
    model = GlimpseForTraining(base, module, settings.objective)
    return model, collator, None if settings.start is None else module
