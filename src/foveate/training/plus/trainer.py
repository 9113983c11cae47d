"""TRL's `GRPOTrainer` on pruned inputs: rollouts and log-probabilities see the same kept tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm  # type: ignore[import-untyped]
from transformers import TrainerCallback
from trl import GRPOTrainer

from foveate.engine.attach import prune
from foveate.engine.cache import FoveatedCache
from foveate.engine.replay import Replay, RowChoices, row_choices
from foveate.errors import ConfigurationError
from foveate.families import adapt
from foveate.files.atomic import publish
from foveate.training.plus.held_out import HeldOut
from foveate.training.plus.judge import JudgeError
from foveate.training.plus.rollouts import Pruning
from foveate.training.plus.sharing import COLUMNS, HEAD, Shared, read_once, score_once
from foveate.training.plus.threshold import ThresholdPolicy
from foveate.training.sharding import leave_alone, place

THRESHOLD = "threshold.safetensors"


def _check_threshold(pruning: Pruning, arguments: Any) -> None:
    if pruning.kind != "glimpse":
        raise ConfigurationError("a learned threshold needs --prune glimpse: boxes have none")
    per_generation = arguments.steps_per_generation or arguments.gradient_accumulation_steps
    if arguments.num_iterations > 1 or per_generation > arguments.gradient_accumulation_steps:
        raise ConfigurationError(
            "a learned threshold needs fresh rollouts for every step: leave num_iterations=1 and "
            "steps_per_generation at most gradient_accumulation_steps"
        )


class Replaying:
    """A model as TRL calls it for log-probabilities, in chunks of a batch: each chunk is pruned as it was sampled.

    Args:
        model, base: what TRL calls, and the stock model inside.
        choices: what every row kept, None if nothing was pruned.
        once: reads what rows share once; see `PlusTrainer.shared`.
    """

    def __init__(
        self,
        model: nn.Module,
        base: nn.Module,
        choices: Sequence[RowChoices] | None,
        once: Callable[[slice, Mapping[str, Any]], Shared | None],
        length: int,
        temperature: float,
    ) -> None:
        self.model, self.base, self.choices, self.once = model, base, choices, once
        self.length, self.temperature, self.done = length, temperature, 0

    def __call__(self, **inputs: Any) -> Any:
        rows = slice(self.done, self.done + inputs["input_ids"].shape[0])
        self.done = rows.stop
        own = None if self.choices is None else self.choices[rows]
        shared = self.once(rows, inputs)
        if shared is None:
            with nullcontext() if own is None else prune(self.base, Replay(own), full_length=True):
                return self.model(**inputs)
        method = None if own is None else Replay([own[row] for row in shared.first])
        cache = FoveatedCache(config=adapt(self.base).parts.text.config)
        with prune(self.base, method, full_length=True):
            return score_once(self.model, shared, cache, inputs, self.length, self.temperature)


class _FreshGradient(TrainerCallback):
    """The Trainer clears the gradients of its model only; the threshold is not part of that."""

    def __init__(self, policy: ThresholdPolicy) -> None:
        self.policy = policy

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.policy.mean.grad = None


class PlusTrainer(GRPOTrainer):
    """GRPO under pruning.

    Args:
        base: the stock model inside `model` (PEFT may have wrapped it).
        pruning: how rollouts are pruned.
        policy: learned threshold, or None.
        threshold_rate: learning rate of its mean.
        held_out: questions that evaluations ask, or None.

    Raises:
        ConfigurationError: a KL term without PEFT: TRL would load the reference model anew, unpruned.
    """

    def __init__(
        self,
        *args: Any,
        base: nn.Module,
        pruning: Pruning,
        policy: ThresholdPolicy | None = None,
        threshold_rate: float = 0.02,
        held_out: HeldOut | None = None,
        **kwargs: Any,
    ) -> None:
        self.held_out = held_out
        self.base, self.pruning, self.policy, self.threshold_rate = base, pruning, policy, threshold_rate
        if kwargs["args"].beta > 0 and kwargs.get("peft_config") is None:
            raise ConfigurationError(
                f"beta={kwargs['args'].beta} without PEFT: TRL would load a second, unpruned model as reference. Train "
                "a LoRA adapter (the reference is then the model without it), or set beta=0."
            )
        if policy is not None:
            _check_threshold(pruning, kwargs["args"])
        super().__init__(*args, **kwargs)
        leave_alone(self.model, lambda _, tensor: tensor.requires_grad)
        if policy is not None:
            policy.to(self.accelerator.device)
            self.add_callback(_FreshGradient(policy))
        self._choices: list[RowChoices] | None = None
        self._samples: Sequence[Mapping[str, Any]] = ()
        self._rows: Sequence[Any] = ()
        self._thresholds: Tensor | None = None

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        place(model, device)  # parts of a divided base are where they belong

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)
        except JudgeError:
            self._save_checkpoint(self.model, trial=None)  # nothing of the steps that were judged is lost
            raise

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Reward and kept share on the held-out questions, answered greedily."""
        if self.held_out is None:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        training, model = self.model.training, self.accelerator.unwrap_model(self.model)
        model.eval()
        found = self.held_out.ask(model, None if self.policy is None else self.policy.threshold)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(dict(metrics))
        model.train(training)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.is_world_process_zero():
            tqdm.write(
                f"step {self.state.global_step}: reward {found['reward']:.3f} ({found['reward_low']:.3f} to "
                f"{found['reward_high']:.3f}), kept {found['kept_share']:.1%}"
            )
        return metrics

    # -- rollouts ----------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._samples, self._rows = inputs, [sample["row"] for sample in inputs]
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self._choices is not None:
            output["choices"] = self._choices  # a list with one entry per row: TRL shuffles and splits it along
        if self._thresholds is not None:
            output["thresholds"] = self._thresholds
        output["rows"] = self._rows
        return output

    def _generate_single_turn(self, prompt_ids: Any, images: Any, fields: Any, *args: Any, **kwargs: Any) -> Any:
        self._thresholds = None
        if self.policy is not None:
            self._thresholds = self.policy.sample(len(self._samples), spread=self.model.training)
        sampled = None if self._thresholds is None else self._thresholds.sigmoid().tolist()
        shared = None
        if sampled is None and images is not None:  # else every row has a threshold of its own
            shared = Shared.of(self._rows, [len(own or ()) for own in images], fields)
        if shared is not None and shared.times is not None:
            prompt_ids, fields = [prompt_ids[row] for row in shared.first], shared.narrow(fields)
        else:
            shared = None
        samples = self._samples if shared is None else [self._samples[row] for row in shared.first]
        method = self.pruning.method(samples, sampled)
        self.generation_config.num_return_sequences = 1 if shared is None else shared.times
        with prune(self.base, method) as trace, read_once(self.base, shared):
            result = super()._generate_single_turn(prompt_ids, images, fields, *args, **kwargs)
        self._choices = None
        if method is not None:
            choices = row_choices(trace.last, method, adapt(self.base).info)
            self._choices = choices if shared is None else shared.spread(choices)
        return result

    def _calculate_rewards(self, inputs: list[dict[str, Any]], *args: Any) -> Tensor:
        shares = [1.0] * len(inputs)
        if self._choices is not None:
            shares = [row.kept / max(row.total, 1) for row in self._choices]
        mode = "train" if self.model.training else "eval"
        self._log_metric("kept_share", sum(shares) / len(shares))  # averaged over all processes
        if self.policy is not None:
            self._metrics[mode]["threshold"].append(self.policy.threshold)
        known = [{**row, "kept_share": share} for row, share in zip(inputs, shares, strict=True)]
        rewards: Tensor = super()._calculate_rewards(known, *args)
        return rewards

    # -- log-probabilities and loss ----------------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        # Hooks stay for the backward pass, in which some versions of transformers run checkpointed layers again.
        with prune(self.base, None):
            loss: Tensor = super().training_step(*args, **kwargs)
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        def shared(rows: slice, inputs: Mapping[str, Any]) -> Shared | None:
            return self.shared(rows, kwargs.get("num_images"), inputs)

        replaying = Replaying(model, self.base, self._choices, shared, logits_to_keep, self.temperature)
        return super()._get_per_token_logps_and_entropies(
            replaying, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )

    def shared(self, rows: slice, images: Sequence[int] | None, inputs: Mapping[str, Any]) -> Shared | None:
        """What rows of the batch share of a pass over prompts and completions, None if all is to be read.

        Layers that are checkpointed keep no cache for completions to read, so then every row is read whole.

        Args:
            rows: of the batch, those in `inputs`.
            images: number of images of every row of the batch.
        """
        again = any(getattr(layer, "gradient_checkpointing", False) for layer in adapt(self.base).parts.layers)
        if again or self.args.gradient_checkpointing or images is None:
            return None
        kept = [0] * len(self._rows) if self._choices is None else [id(own) for own in self._choices]
        fields = {name: value for name, value in inputs.items() if name not in (*COLUMNS, *HEAD)}
        return Shared.of(list(zip(self._rows, kept, strict=True))[rows], images[rows], fields)

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        self._choices, self._rows = inputs.get("choices"), inputs.get("rows", ())
        loss: Tensor = super()._compute_loss(model, inputs)
        if self.policy is not None:
            # of all processes: then every one of them takes the same step
            gathered = (self.accelerator.gather(inputs[name]) for name in ("thresholds", "advantages"))
            own = self.policy.loss(*gathered)
            loss = loss + own / self.current_gradient_accumulation_steps
        return loss

    # -- the threshold among what is trained and saved ---------------------------------------------------

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        if self.policy is not None:
            group = {"params": [self.policy.mean], "lr": self.threshold_rate, "weight_decay": 0.0}
            optimizer.add_param_group(group)
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if not self.args.should_save:  # one of several processes writes
            return
        folder = Path(output_dir or self.args.output_dir)
        if self.policy is not None:
            save_file({"mean": self.policy.mean.detach().cpu()}, folder / THRESHOLD)
        publish(*folder.glob("*.safetensors"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_policy(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_policy(str(self.state.best_model_checkpoint))

    def _load_policy(self, checkpoint: str) -> None:
        if self.policy is not None:
            self.policy.mean.data.copy_(load_file(Path(checkpoint) / THRESHOLD)["mean"])
