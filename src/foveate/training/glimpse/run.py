"""A whole training run: data, models, trainer, results."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from transformers import TrainingArguments

from foveate import zoo
from foveate.data.reading import read_rows
from foveate.data.rows import Rows, Rules
from foveate.errors import ConfigurationError
from foveate.families import adapt
from foveate.glimpse.module import WEIGHTS, GlimpseModule
from foveate.glimpse.official import load_module
from foveate.inference.answer import Asker
from foveate.inference.weights import fingerprint
from foveate.training.arguments import parse_arguments
from foveate.training.base import load_base
from foveate.training.glimpse.answers import fill_answers
from foveate.training.glimpse.collate import Collator
from foveate.training.glimpse.model import GlimpseForTraining
from foveate.training.glimpse.objectives import Objective
from foveate.training.glimpse.planning import plan_memory
from foveate.training.glimpse.trainer import GlimpseTrainer
from foveate.training.loading import default_workers
from foveate.training.processes import divided, together
from foveate.training.rows import check_for, tracked
from foveate.training.runs import (
    RunSettings,
    begin,
    check_resumed,
    check_same,
    check_weights,
    run,
    with_evaluation,
    write_summary,
)
from foveate.training.sharding import check_not_wrapped, mesh_of, place, shard, warm_up

PUBLISHED = {
    "learning_rate": 1e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,  # below 1: a fraction of all steps
    "num_train_epochs": 1,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
}
"""GlimpsePrune's optimiser settings."""

PUBLISHED_RUN = "20,000 rows, global batch 16 on two GPUs with 8 accumulated, learning rate 1e-4"
"""What the paper's run used, for a reader who compares."""

_DEFAULTS = {"logging_steps": 10, "save_steps": 500, "save_total_limit": 2, "report_to": "none", "seed": 0}
_OURS = {"remove_unused_columns": False, "prediction_loss_only": False}


@dataclass(frozen=True)
class GlimpseSettings(RunSettings):
    """What to train, on what, and where to put it (`config.json`, `model.safetensors`, `training.json`).

    `arguments` are fields of `transformers.TrainingArguments` that differ from `PUBLISHED`.

    Attributes:
        start: module to go on from (folder or hub id); None: a fresh one.
        module: fields of `GlimpseConfig` that differ from the defaults for this model.
    """

    objective: Objective = field(default_factory=Objective)
    start: str | None = None
    module: dict[str, Any] = field(default_factory=dict)


def training_arguments(settings: GlimpseSettings) -> TrainingArguments:
    """`TrainingArguments`; values may be strings, as they come from a command line.

    Raises:
        ConfigurationError: an unknown name or a value of the wrong kind.
    """
    own = {"dataloader_num_workers": default_workers(), "train_sampling_strategy": "group_by_length"}
    given = {**PUBLISHED, **_DEFAULTS, **own, **settings.arguments, **_OURS, "output_dir": str(settings.out)}
    return parse_arguments(TrainingArguments, with_evaluation(settings, given, "eval_loss"))


def train(settings: GlimpseSettings) -> dict[str, float]:
    """Train a glimpse module and write it to `settings.out`; returns the final metrics.

    Raises:
        FoveateError: anything the user can mend: data, models, settings, an output folder in use.
    """
    arguments = training_arguments(settings)
    check_not_wrapped(arguments)
    checkpoint, data = begin(settings, arguments, WEIGHTS, _rules(settings), PUBLISHED_RUN)
    eval_data = _held_out(settings)  # before the models: a bad row shall not cost minutes
    mesh = mesh_of(arguments.device) if settings.shard else None
    with together():
        model, collator, weights = _load_models(settings, arguments.device, mesh)
    warm_up(model.base)
    check_weights(settings, checkpoint, **weights)
    with together():
        data = check_for(collator.family, collator.processor, data, settings.skip_bad, settings.system)
        if eval_data is not None:
            eval_data = check_for(collator.family, collator.processor, eval_data, settings.skip_bad)
    examples = fill_answers(
        Asker(model.base, collator.processor), collator, data, settings.out / "answers", weights["base"]
    )
    plan_memory(arguments, settings.arguments, model, collator, examples)
    with model:
        trainer = GlimpseTrainer(
            model,
            arguments,
            data_collator=collator,
            train_dataset=examples,
            eval_dataset=eval_data,
        )
        metrics = run(trainer, settings, checkpoint)
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


def _rules(settings: GlimpseSettings) -> Rules:
    objective = settings.objective
    return Rules(
        box_format=settings.box_format,
        needs_boxes=objective.uses_boxes,
        needs_answer=objective.supervised,
        takes_videos=not objective.uses_boxes,
        skip_bad=settings.skip_bad,
    )


def _held_out(settings: GlimpseSettings) -> Rows | None:
    """Evaluation must be comparable between runs, so every row needs its answer."""
    if settings.eval_data is None:
        return None
    rules = replace(_rules(settings), needs_answer=True)
    check_same(settings.eval_data)
    return read_rows(settings.eval_data, rules, settings.eval_limit, progress=tracked, divided=divided)


def _load_models(
    settings: GlimpseSettings, device: torch.device, mesh: DeviceMesh | None
) -> tuple[GlimpseForTraining, Collator, dict[str, str | None]]:
    """The models, on their device, and the fingerprints of those that were loaded."""
    if settings.start is not None and settings.module:
        raise ConfigurationError("a module to start from brings its own configuration; give only one of both")
    base, processor = load_base(settings)
    if settings.start is not None:
        module = load_module(settings.start).float()
    else:
        module = GlimpseModule.for_model(base, **{"base_model": settings.model, **settings.module})
    weights = {"base": fingerprint(base), "start": None if settings.start is None else fingerprint(module)}
    # Zoo models only know prompts with the system message that they were trained with.
    from_zoo = zoo.resolve(settings.model) != settings.model
    system = zoo.SYSTEM if settings.system is None and from_zoo else settings.system
    collator = Collator(adapt(base), processor, system=system, with_boxes=settings.objective.uses_boxes)
    if mesh is not None:
        shard(base, mesh)
    model = GlimpseForTraining(base, module, settings.objective)
    place(model, device)
    return model, collator, weights
