"""`transformers.Trainer` for a glimpse module: checkpoints hold the module only, and resume from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import RandomSampler, SequentialSampler
from tqdm.auto import tqdm  # type: ignore[import-untyped]
from transformers import EvalPrediction, Trainer, TrainerCallback

from foveate.errors import CheckpointError
from foveate.glimpse.module import WEIGHTS, GlimpseModule
from foveate.training.glimpse.model import GlimpseForTraining
from foveate.training.glimpse.objectives import TOKEN_MEANS, Shares
from foveate.training.loading import LengthBuckets, extents
from foveate.training.losses import IGNORE
from foveate.training.sharding import place

_SHOWN = ("recall", "accuracy", "accuracy_unpruned")


class GlimpseTrainer(Trainer):
    """Trains a `GlimpseForTraining`; the arguments are those of `transformers.Trainer`.

    Evaluations report the mean of everything that the model's forward returns.
    """

    def __init__(self, model: GlimpseForTraining, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, compute_metrics=self._metrics, **kwargs)
        self.add_callback(_EvaluationLine)
        self._sums: dict[str, Tensor] = {}
        self._whole: tuple[float, float, int] | None = None
        self._names: list[str] = []

    @property
    def glimpse(self) -> GlimpseModule:
        """The module that learns."""
        return self.accelerator.unwrap_model(self.model).module

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        place(model, device)  # parts of a divided base are where they belong

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Batches of prompts of similar length, where lengths are known."""
        rows, size = train_dataset or self.train_dataset, self.args.train_batch_size
        grouped = self.args.train_sampling_strategy == "group_by_length"
        known = extents(rows) if grouped and size > 1 else None
        if known is not None:
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            return LengthBuckets(known, size * self.args.world_size, seed)
        return RandomSampler(rows) if grouped else super()._get_train_sampler(train_dataset)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """In their order."""
        return SequentialSampler(eval_dataset) if self.args.world_size == 1 else None

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of a step, after counting the answer tokens and samples of all of them on all processes."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        counts = torch.tensor([_sizes(batch) for batch in batches], dtype=torch.float64).reshape(-1, 2).sum(0)
        tokens, samples = self.accelerator.reduce(counts.float().to(self.args.device), "sum").tolist()
        self._whole = tokens, samples, len(batches) * self.accelerator.num_processes
        return batches, items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        tokens, samples = _sizes(inputs)
        shares = None
        if self._whole is not None:
            all_tokens, all_samples, parts = self._whole
            shares = Shares(tokens * parts / max(all_tokens, 1), samples * parts / max(all_samples, 1))
        outputs = model(**inputs, shares=shares)
        for name, value in outputs.items():
            if name != "loss":
                weight = tokens if name in TOKEN_MEANS else samples
                found = torch.stack([value.mean().float() * weight, value.new_tensor(weight).float()])
                self._sums[name] = self._sums.get(name, 0) + found
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of every loss term since the last training log, over all processes as the loss is."""
        if "loss" in logs and self._sums:
            sums = self.accelerator.reduce(torch.stack([self._sums[name] for name in sorted(self._sums)]), "sum")
            means = (sums[:, 0] / sums[:, 1].clamp(min=1)).tolist()
            logs |= {name: round(mean, 5) for name, mean in zip(sorted(self._sums), means, strict=True)}
            self._sums.clear()
        super().log(logs, start_time)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, Any, Any]:
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**self._prepare_inputs(inputs))
        self._names = [name for name in outputs if name != "loss"]
        # The Trainer computes metrics only if there are labels; any tensor will do.
        return outputs["loss"].detach(), tuple(outputs[name] for name in self._names), outputs["kept"]

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        return {name: float(np.mean(x)) for name, x in zip(self._names, prediction.predictions, strict=True)}

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write the module alone."""
        if self.args.should_save:
            self.glimpse.save_pretrained(output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        path = Path(resume_from_checkpoint) / WEIGHTS
        if not path.is_file():
            raise CheckpointError(f"{resume_from_checkpoint} is no checkpoint of a glimpse module (no {WEIGHTS})")
        self.accelerator.unwrap_model(model or self.model).module.load_state_dict(load_file(path))

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self._load_from_checkpoint(self.state.best_model_checkpoint)


def _sizes(batch: Mapping[str, Any]) -> tuple[int, int]:
    """Answer tokens and samples of a micro-batch."""
    labels = batch["labels"]
    return int((labels != IGNORE).sum()), len(labels)


class _EvaluationLine(TrainerCallback):
    """One line per evaluation."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        metrics = {k.removeprefix("eval_"): v for k, v in kwargs["metrics"].items()}
        parts = [f"loss {metrics['loss']:.4f}", f"kept {metrics['kept']:.1%}"]
        parts += [f"{name.replace('_', ' ')} {metrics[name]:.1%}" for name in _SHOWN if name in metrics]
        tqdm.write(f"step {state.global_step}: " + ", ".join(parts))
