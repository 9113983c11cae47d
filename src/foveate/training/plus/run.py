"""The reinforcement-learning stage: data, models, trainer, adapter."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foveate.data.reading import read_rows
from foveate.data.rows import Rows, Rules
from foveate.errors import ConfigurationError, MissingExtraError
from foveate.families import adapt
from foveate.glimpse.config import default_layer
from foveate.glimpse.module import WEIGHTS, GlimpseModule
from foveate.glimpse.official import load_module
from foveate.inference.weights import fingerprint
from foveate.training.arguments import parse_arguments
from foveate.training.base import ADAPTER, load_base
from foveate.training.glimpse.collate import Collator
from foveate.training.plus.held_out import HeldOut
from foveate.training.plus.judge import Judge
from foveate.training.plus.rewards import Rewards
from foveate.training.plus.rollouts import Prune, Pruning, dataset
from foveate.training.plus.screening import check_screening, screened, suppressed
from foveate.training.plus.threshold import ThresholdPolicy
from foveate.training.processes import together
from foveate.training.rows import check_for, tracked
from foveate.training.runs import RunSettings, begin, check_resumed, check_weights, run, with_evaluation, write_summary
from foveate.training.sharding import mesh_of, shard

PUBLISHED = {
    "num_generations": 4,
    "per_device_train_batch_size": 4,  # one group; published: one completion on each of four devices
    "gradient_accumulation_steps": 8,
    "steps_per_generation": 1,
    "num_train_epochs": 1,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,  # below 1: a fraction of all steps
    "beta": 0.04,
    "max_completion_length": 128,
    "temperature": 1.0,
    "loss_type": "grpo",  # token mean, then sample mean
    "scale_rewards": "group",
    "use_bias_correction_kl": False,  # the published gradient of the KL term
}
"""GlimpsePrune+'s settings of its reinforcement-learning stage, as fields of `trl.GRPOConfig`."""

PUBLISHED_RUN = "8 groups of 4 a step on four devices, learning rate 1e-4"
"""What the paper's reinforcement learning used, for a reader who compares."""

LORA = {"r": 32, "lora_alpha": 64, "lora_dropout": 0.05}
"""Published settings of the adapter, as fields of `peft.LoraConfig`."""

DECISIVE = ("num_generations", "beta", "max_completion_length", "temperature", "loss_type", "scale_rewards", "epsilon")
"""Fields of `trl.GRPOConfig` that a run may not change on its way."""

_DEFAULTS = {"logging_steps": 1, "save_steps": 50, "save_total_limit": 2, "report_to": "none", "seed": 0}
_OURS = {"remove_unused_columns": False}


@dataclass(frozen=True)
class PlusSettings(RunSettings):
    """What to fine-tune, on what, and where to put the adapter (`adapter_model.safetensors`, `training.json`).

    `arguments` are fields of `trl.GRPOConfig` that differ from `PUBLISHED`.

    Attributes:
        first: row of `data` to begin with.
        module: glimpse module (folder or hub id); gives K, and prunes where boxes do not.
        prune: see `rollouts.Prune`.
        layer: K; None: the module's, or two thirds of the layers.
        rewards: weight of each reward.
        judge: arguments of `Judge` (its cache is `out/judge.sqlite` unless given), or None.
        learn_threshold: make the module's threshold part of the policy.
        screen: sample every question so often before training, and train on those that are answered sometimes but not
            always; 0: on all.
        screen_file: where the results are kept, also for other runs; None: `out/screen.jsonl`.
        lora: fields of `peft.LoraConfig` that differ from `LORA`. None: no adapter, all of the language model.
    """

    first: int = 0
    module: str | None = None
    prune: Prune = "boxes"
    layer: int | None = None
    rewards: dict[str, float] = field(default_factory=lambda: {"exact_match": 1.0})
    judge: dict[str, Any] | None = None
    learn_threshold: bool = False
    screen: int = 0
    screen_file: Path | None = None
    lora: dict[str, Any] | None = field(default_factory=dict)


def grpo_arguments(settings: PlusSettings) -> Any:
    """`trl.GRPOConfig`; values may be strings.

    Raises:
        MissingExtraError: TRL or PEFT is not installed.
        ConfigurationError: an unknown name or a value of the wrong kind.
    """
    try:
        import peft  # noqa: F401
        from trl import GRPOConfig
    except ImportError as error:
        raise MissingExtraError("`foveate train plus` needs: pip install 'foveate[train]'") from error
    own = {"bf16": torch.accelerator.is_available(), "output_dir": str(settings.out)}
    if settings.judge is not None:  # other processes wait at a barrier while one waits for the judge
        own["ddp_timeout"] = int(float(settings.judge.get("patience", Judge.patience))) + 1800
    given = {**PUBLISHED, **_DEFAULTS, **own, **settings.arguments, **_OURS}
    if "generation_batch_size" in settings.arguments and "steps_per_generation" not in settings.arguments:
        given.pop("steps_per_generation")  # TRL takes one of the two
    if settings.eval_data is not None:
        given = {"num_generations_eval": 1, **given}  # answers are greedy
    elif given.get("eval_strategy", "no") != "no":
        raise ConfigurationError("eval_strategy: nothing is held out; give --eval-data")
    arguments = parse_arguments(GRPOConfig, with_evaluation(settings, given, "eval_reward"))
    if settings.shard and settings.lora is None:
        raise ConfigurationError("--shard divides what is frozen, and with --full nothing is; train an adapter")
    if arguments.use_vllm:
        raise ConfigurationError("use_vllm=True: vLLM would sample from unpruned prompts; leave it off")
    check_screening(settings)
    return arguments


def make_rewards(settings: PlusSettings) -> Rewards:
    """The rewards, with their judge.

    Raises:
        ConfigurationError: unknown names, a judge without its reward or the other way round, a threshold that
            nothing holds back.
    """
    weights = settings.rewards
    if settings.learn_threshold and not (weights.get("pruning_rate") and len([w for w in weights.values() if w]) > 1):
        raise ConfigurationError(
            "a learned threshold needs a reward for the task and one for pruning, or it drifts to one end: for "
            "example --reward exact_match=1 --reward pruning_rate=0.5"
        )
    if settings.judge is None:
        return Rewards(weights)
    try:
        return Rewards(weights, Judge(**{"cache": settings.out / "judge.sqlite", **settings.judge}))
    except TypeError as error:
        raise ConfigurationError(f"judge: {error}") from error


def make_adapter(settings: PlusSettings, base: nn.Module | None) -> Any:
    """The `peft.LoraConfig`, or None.

    Raises:
        ConfigurationError: an unknown field.
    """
    from peft import LoraConfig

    if settings.lora is None:
        return None
    layers = {} if base is None else {"target_modules": language_linears(base)}
    try:
        return LoraConfig(**{**layers, **LORA, **settings.lora})
    except TypeError as error:
        raise ConfigurationError(f"lora: {error}") from error


def train(settings: PlusSettings) -> dict[str, float]:
    """Train an adapter on pruned inputs and write it to `settings.out`; returns the final metrics.

    Raises:
        FoveateError: anything the user can mend: data, models, settings, a judge that is down, a folder in use.
    """
    arguments = grpo_arguments(settings)
    weights = ADAPTER if settings.lora is not None else WEIGHTS
    needs_boxes = settings.prune == "boxes" and settings.module is None
    rules = Rules(settings.box_format, needs_boxes, skip_bad=settings.skip_bad)
    rewards = make_rewards(settings)
    checkpoint, examples = begin(settings, arguments, weights, rules, PUBLISHED_RUN, settings.first, DECISIVE)
    eval_data = None
    if settings.eval_data is not None:
        eval_data = read_rows(settings.eval_data, rules, settings.eval_limit, progress=tracked)
    mesh = mesh_of(arguments.device) if settings.shard else None
    with together():
        base, processor = load_base(settings)
        module = _module(settings)
    known = {"base": fingerprint(base), "module": None if module is None else fingerprint(module)}
    check_weights(settings, checkpoint, **known)
    if mesh is not None:
        shard(base.requires_grad_(False), mesh)
    with together():
        examples = check_for(adapt(base), processor, examples, settings.skip_bad, settings.system)
        if eval_data is not None:
            eval_data = check_for(adapt(base), processor, eval_data, settings.skip_bad, settings.system)
    if settings.screen:
        pruning = _pruning(settings, base)
        examples = screened(settings, arguments, examples, rewards, base, processor, pruning, known)
    trainer = build_trainer(settings, arguments, examples, rewards, base, processor, eval_data)
    metrics = run(trainer, settings, checkpoint)
    if trainer.is_world_process_zero():
        _summarize(settings, trainer, examples, metrics)
    return metrics


def _summarize(settings: PlusSettings, trainer: Any, rows: Rows, metrics: dict[str, float]) -> None:
    judge = settings.judge and {name: value for name, value in settings.judge.items() if name != "api_key"}
    results = {
        "rows": len(rows),
        "rows_skipped": len(rows.skipped),
        "threshold": None if trainer.policy is None else trainer.policy.threshold,
        "metrics": metrics,
        "log": trainer.state.log_history,
    }
    write_summary(replace(settings, judge=judge), trainer.args, tuple(PUBLISHED), results, ("trl", "peft"))


def check_done(settings: PlusSettings) -> None:
    """Refuse a finished run in the settings' folder that was started with others.

    Raises:
        ConfigurationError: naming every difference.
    """
    check_resumed(settings, settings.out, grpo_arguments(settings), DECISIVE)


def build_trainer(
    settings: PlusSettings,
    arguments: Any,
    examples: Rows,
    rewards: Rewards,
    base: Any,
    processor: Any,
    eval_data: Rows | None = None,
) -> Any:
    """The trainer on a freshly loaded model."""
    from foveate.training.plus.trainer import PlusTrainer

    pruning = _pruning(settings, base)
    adapter = make_adapter(settings, base)
    if adapter is None:
        base.requires_grad_(False)
        adapt(base).parts.text.requires_grad_(True)
    policy = None
    if settings.learn_threshold:
        policy = ThresholdPolicy(0.5 if pruning.module is None else pruning.module.config.threshold)
    arguments.generation_kwargs = suppressed(base) | (arguments.generation_kwargs or {})
    return PlusTrainer(
        base,
        reward_funcs=rewards,
        args=arguments,
        train_dataset=dataset(examples, settings.system),
        processing_class=processor,
        peft_config=adapter,
        base=base,
        pruning=pruning,
        policy=policy,
        held_out=None
        if eval_data is None
        else _held_out(settings, arguments, eval_data, pruning, rewards, processor, base),
        eval_dataset=None if eval_data is None else dataset(eval_data, settings.system),
    )


def _held_out(
    settings: PlusSettings, arguments: Any, rows: Rows, pruning: Pruning, rewards: Rewards, processor: Any, base: Any
) -> HeldOut:
    collator = Collator(adapt(base), processor, settings.system, with_boxes=False)
    size, length = arguments.per_device_eval_batch_size, arguments.max_completion_length
    return HeldOut(rows, collator, base, pruning, rewards, size, length)


def _module(settings: PlusSettings) -> GlimpseModule | None:
    return None if settings.module is None else load_module(settings.module).eval()


def _pruning(settings: PlusSettings, base: nn.Module) -> Pruning:
    module = _module(settings)
    return Pruning(settings.prune, _layer(settings, base, module), module)


def _layer(settings: PlusSettings, base: nn.Module, module: GlimpseModule | None) -> int:
    layers = adapt(base).info.layers
    if settings.layer is not None:
        if not 0 <= settings.layer < layers:
            raise ConfigurationError(f"layer={settings.layer}: the model has layers 0..{layers - 1}")
        return settings.layer
    if module is not None:
        module.check_fits(base)
        return module.config.reduce_layer
    return default_layer(layers)


def language_linears(model: nn.Module) -> str:
    """Regular expression of the language model's linear layers, as PEFT's `target_modules`.

    The output layer is not among them: TRL multiplies by its weight directly and would pass an adapter by.
    """
    layers = adapt(model).parts.layers
    prefix = next(name for name, module in model.named_modules() if module is layers)
    leaves = {name.rsplit(".")[-1] for name, module in layers.named_modules() if isinstance(module, nn.Linear)}
    return rf"{re.escape(prefix)}\..*\.({'|'.join(sorted(leaves))})"
