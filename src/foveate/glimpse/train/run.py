"""A whole training run: data, models, trainer, results."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainingArguments, set_seed

from foveate import zoo
from foveate.errors import ConfigurationError
from foveate.families import adapt
from foveate.glimpse.boxes import BoxFormat
from foveate.glimpse.module import WEIGHTS, GlimpseModule
from foveate.glimpse.official import load_module
from foveate.glimpse.train.answers import fill_answers
from foveate.glimpse.train.arguments import parse_arguments
from foveate.glimpse.train.collate import Collator
from foveate.glimpse.train.data import load_examples
from foveate.glimpse.train.example import Examples, Rules
from foveate.glimpse.train.model import GlimpseForTraining
from foveate.glimpse.train.objectives import Objective
from foveate.glimpse.train.trainer import GlimpseTrainer, last_checkpoint
from foveate.loading import load
from foveate.zoo.tokenizer import SYSTEM as ZOO_SYSTEM

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
class Settings:
    """What to train, on what, and where to put it.

    Attributes:
        model: base model: id, path or zoo name.
        data, eval_data: see `data.load_examples`. `limit` and `eval_limit` take the first rows only.
        out: folder of the result (`config.json`, `model.safetensors`, `training.json`) and its checkpoints.
        start: module to go on from (folder or hub id); None: a fresh one.
        module: fields of `GlimpseConfig` that differ from the defaults for this model.
        arguments: fields of `transformers.TrainingArguments` that differ from `PUBLISHED`.
        dtype: of the base model; `auto`: the checkpoint's on an accelerator, float32 on a CPU.
        resume: go on from the last complete checkpoint in `out`, if there is one.
    """

    model: str
    data: str
    out: Path
    objective: Objective = field(default_factory=Objective)
    eval_data: str | None = None
    limit: int | None = None
    eval_limit: int | None = 200
    box_format: BoxFormat = "pixel"
    skip_bad: bool = False
    system: str | None = None
    start: str | None = None
    module: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    dtype: str = "auto"
    attention: str = "sdpa"
    resume: bool = False


def training_arguments(settings: Settings) -> TrainingArguments:
    """`TrainingArguments`; values may be strings, as they come from a command line.

    Raises:
        ConfigurationError: an unknown name or a value of the wrong kind.
    """
    given = {**PUBLISHED, **_DEFAULTS, **settings.arguments, **_OURS, "output_dir": str(settings.out)}
    if settings.eval_data is not None and "eval_strategy" not in settings.arguments:
        given |= {"eval_strategy": "steps", "eval_steps": given.get("eval_steps", given["save_steps"])}
    return parse_arguments(TrainingArguments, given)


def train(settings: Settings) -> dict[str, float]:
    """Train a glimpse module and write it to `settings.out`; returns the final metrics.

    Raises:
        FoveateError: anything the user can mend: data, models, settings, an output folder in use.
    """
    arguments = training_arguments(settings)
    checkpoint = _place(settings)
    data, eval_data = _load_data(settings)  # before the models: a bad row shall not cost minutes
    set_seed(arguments.seed)
    model, collator = _load_models(settings)
    model.to(arguments.device)
    with arguments.main_process_first(desc="answers"):  # the others then find them in the file
        examples = fill_answers(model.base, collator, data, settings.out / "answers.jsonl")
    with model:
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
        _write_summary(settings, arguments, metrics, len(examples), data.skipped)
    return metrics


def _evaluated_now(trainer: GlimpseTrainer) -> dict[str, float]:
    """Metrics of an evaluation that has just taken place, at the last step."""
    history = [entry for entry in trainer.state.log_history if entry["step"] == trainer.state.global_step]
    found = [entry for entry in history if "eval_loss" in entry]
    return {name: value for name, value in found[-1].items() if name.startswith("eval_")} if found else {}


def _place(settings: Settings) -> Path | None:
    """The checkpoint to resume from; refuses to train over the results of an earlier run."""
    checkpoint = last_checkpoint(settings.out)
    if settings.resume:
        return checkpoint
    if checkpoint is not None or (settings.out / WEIGHTS).exists():
        raise ConfigurationError(
            f"{settings.out} already holds a training run; go on with --resume, or choose another folder"
        )
    return None


def _load_data(settings: Settings) -> tuple[Examples, Examples | None]:
    objective = settings.objective
    rules = Rules(
        box_format=settings.box_format,
        needs_boxes=objective.uses_boxes,
        needs_answer=objective.supervised,
        skip_bad=settings.skip_bad,
    )
    data = load_examples(settings.data, rules, settings.limit)
    if settings.eval_data is None:
        return data, None
    # Evaluation must be comparable between runs, so every row needs its answer.
    checked = load_examples(
        settings.eval_data, Rules(rules.box_format, rules.needs_boxes, True, rules.skip_bad), settings.eval_limit
    )
    return data, checked


def _load_models(settings: Settings) -> tuple[GlimpseForTraining, Collator]:
    if settings.start is not None and settings.module:
        raise ConfigurationError("a module to start from brings its own configuration; give only one of both")
    automatic = "auto" if torch.accelerator.is_available() else "float32"
    # On the CPU: the Trainer knows which device belongs to this process.
    base, processor = load(
        settings.model,
        dtype=automatic if settings.dtype == "auto" else settings.dtype,
        device="cpu",
        attn_implementation=settings.attention,
    )
    if settings.start is not None:
        module = load_module(settings.start).float()
    else:
        module = GlimpseModule.for_model(base, **{"base_model": settings.model, **settings.module})
    # Zoo models only know prompts with the system message that they were trained with.
    from_zoo = zoo.resolve(settings.model) != settings.model
    system = ZOO_SYSTEM if settings.system is None and from_zoo else settings.system
    collator = Collator(adapt(base), processor, system=system, with_boxes=settings.objective.uses_boxes)
    return GlimpseForTraining(base, module, settings.objective), collator


def _write_summary(
    settings: Settings, arguments: TrainingArguments, metrics: dict[str, float], rows: int, skipped: int
) -> None:
    """What was trained how, where and with what result, beside the weights."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    summary = {
        "settings": {k: v for k, v in asdict(settings).items() if k not in ("out", "resume")},
        "arguments": {name: getattr(arguments, name) for name in (*PUBLISHED, "seed", "max_steps", "bf16")},
        "rows": rows,
        "rows_skipped": skipped,
        "metrics": metrics,
        "processes": arguments.world_size,
        "device": str(device) if device else platform.processor() or platform.machine(),
        "versions": {
            "foveate": version("foveate"),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }
    partial = settings.out / "training.json.partial"
    partial.write_text(json.dumps(summary, indent=2, default=str) + "\n", encoding="utf-8")
    partial.replace(settings.out / "training.json")
