"""A frozen base model and the module that learns, as one `nn.Module` for a trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from foveate.core.view import Tap
from foveate.errors import ConfigurationError, UnsupportedModelError
from foveate.families import adapt
from foveate.glimpse.module import GlimpseModule
from foveate.training.evidence import ImageBoxes, evidence
from foveate.training.glimpse.inputs import PromptBatch, prepare
from foveate.training.glimpse.objectives import Objective, Shares, accuracies, decide, distilled, located, look
from foveate.training.glimpse.passes import LanguageModel
from foveate.training.glimpse.plans import Read
from foveate.training.sharding import leave_alone


@dataclass(frozen=True)
class Outcome:
    """A batch's loss terms (unweighted), their weighted sum, and the logits they came from.

    `logits[b]` is [output rows, N_b] for the image tokens of row b; the last row decides. `masks` are the evidence
    masks, [N_b] bool each, if there are any.
    """

    prompts: PromptBatch
    read: Read
    logits: list[Tensor]
    masks: Sequence[Tensor] | None
    terms: dict[str, Tensor]
    total: Tensor


class GlimpseForTraining(nn.Module):
    """Trains `module` for the stock model `base`, which stays frozen and, but for hooks, untouched.

    Use it as a context manager, or call `remove_hooks` when done.

    Raises:
        UnsupportedModelError: `base` is of no supported family, or has recurrent layers.
        MissingTapError: `module` reads a vision block that `base` has not.
        CheckpointError: `module` was made for a model of other sizes.
        ConfigurationError: distillation is asked for, but nothing follows the pruning layer or the attention
            backend takes no additive mask.
    """

    accepts_loss_kwargs = False  # the trainer weighs micro-batches itself: not all terms are means over tokens

    def __init__(self, base: nn.Module, module: GlimpseModule, objective: Objective | None = None) -> None:
        super().__init__()
        module.check_fits(base)
        self.base = base.requires_grad_(False).eval()
        self.module = module
        self.objective = objective or Objective()
        leave_alone(self, lambda name, _: not name.startswith("base."))
        head = base.get_output_embeddings()  # type: ignore[operator]
        if head is None:
            raise UnsupportedModelError(
                f"{type(base).__name__} has no language model head; load it with AutoModelForImageTextToText"
            )
        self._frozen = LanguageModel(adapt(base), head)
        self._check_objective()
        self._handles = self._frozen.install()

    @property
    def _takes_masks(self) -> bool:
        config: Any = self.base.config
        return config._attn_implementation in ("sdpa", "eager")

    def _check_objective(self) -> None:
        config = self.module.config
        for block in config.vision_blocks:  # one that is not there shows now, not after all questions were asked
            self._frozen.family.block_of(Tap("hidden", block))
        other = [i for i, facts in enumerate(self._frozen.family.layers) if facts.kind == "linear" or facts.source != i]
        if other:
            raise UnsupportedModelError(
                f"decoder layers {other} of '{self._frozen.family.name}' keep no keys of their own (recurrent or "
                "shared), so nothing can be tried behind a prompt that was read once; no glimpse module can be trained"
            )
        if not self.objective.supervised and not self.objective.distillation:
            raise ConfigurationError("all loss weights are 0, so there is nothing to learn")
        if not self.objective.distillation:
            return
        if config.reduce_layer >= config.num_hidden_layers - 1:
            raise ConfigurationError(
                f"distillation needs layers after reduce_layer={config.reduce_layer}, but the model has "
                f"{config.num_hidden_layers}; choose a smaller reduce_layer"
            )
        if not self._takes_masks:
            raise ConfigurationError(
                "distillation adds a bias to attention, which the model's attention backend cannot do; load "
                "the model with attn_implementation='sdpa'"
            )

    def remove_hooks(self) -> None:
        """Leave the base model as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for layer in self._frozen.rerun:
            del layer._gradient_checkpointing_func
        self._frozen.rerun.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove_hooks()

    def train(self, mode: bool = True) -> Self:
        """The module follows `mode`; the base stays in evaluation mode (no dropout)."""
        super().train(mode)
        self.base.eval()
        return self

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recompute every n-th decoder layer behind the pruning layer in the backward pass of distillation.

        Elsewhere nothing of a prompt is stored. The stock switch would also make the embeddings require gradients. The
        name and the arguments are those that `transformers.Trainer` calls.
        """
        options = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        if options["use_reentrant"] or offload:
            raise ConfigurationError(
                "gradient checkpointing with use_reentrant=True loses the glimpse token's gradients, and "
                "offload is not supported; leave both out"
            )
        self._frozen.rerun[:] = list(self._frozen.family.parts.layers)[::every_n_layers]
        for layer in self._frozen.rerun:
            layer._gradient_checkpointing_func = partial(checkpoint, **options)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """The name by which older transformers call `activation_checkpointing_enable`."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    def outcome(
        self,
        ref_masks: Sequence[Tensor] | None = None,
        shares: Shares | None = None,
        boxes: Sequence[ImageBoxes] | None = None,
        **batch: Tensor,
    ) -> Outcome:
        """Loss terms of a batch.

        Args:
            ref_masks: evidence masks per row, [N_b] bool in raster order; localization needs them, or boxes.
            shares: see `Objective.total`.
            boxes: per row, normalised evidence boxes of each image.
            batch: arguments of the base model's forward, with `labels` (-100 outside the answer).
        """
        objective, module = self.objective, self.module
        if objective.uses_boxes and ref_masks is None and boxes is None:
            raise ConfigurationError("the localization loss needs evidence boxes; set its weight to 0 without")
        prompts = prepare(self._frozen.family, batch, module.config.vision_blocks, module.config.le_length)
        if ref_masks is None and boxes is not None:
            placed = enumerate(zip(boxes, prompts.images, strict=True))
            ref_masks = [evidence(own, images, row).to(prompts.valid.device) for row, (own, images) in placed]
        read = self._read(prompts)
        logits, terms = look(self._frozen, module, prompts, read, objective)
        if objective.uses_boxes and ref_masks is not None:
            terms |= located(logits, ref_masks, objective)
        if objective.distillation:
            terms |= distilled(self._frozen, prompts, read, logits, objective, drawn=self.training)
        return Outcome(prompts, read, logits, ref_masks, terms, objective.total(terms, shares))

    def _read(self, prompts: PromptBatch) -> Read:
        """What all passes of a step go on behind."""
        config, objective = self.module.config, self.objective
        answers = objective.distillation > 0 or (not self.training and self._takes_masks)
        split = config.reduce_layer + 1 if answers else None
        until = None if answers or objective.language else max(config.selected_layers)
        return self._frozen.read(prompts, answers, until, split)

    def forward(
        self,
        ref_masks: Sequence[Tensor] | None = None,
        shares: Shares | None = None,
        boxes: Sequence[ImageBoxes] | None = None,
        **batch: Tensor,
    ) -> dict[str, Tensor]:
        """The loss, and what it is made of.

        Returns:
            `loss` (scalar) and, each [B], its terms, `kept` (fraction of visual tokens) and, with evidence masks,
            `recall` (fraction of the evidence that is kept). In evaluation mode also `accuracy` and
            `accuracy_unpruned`: whether greedy decoding would give the answer, with and without pruning (if the
            attention backend takes additive masks).
        """
        outcome = self.outcome(ref_masks, shares, boxes, **batch)
        keep = decide(outcome.logits, self.module.config)
        result = {"loss": outcome.total}
        result |= {name: term.detach().float().expand(len(keep)) for name, term in outcome.terms.items()}
        result["kept"] = torch.stack([k.float().mean() for k in keep])
        if outcome.masks is not None:
            pairs = zip(keep, outcome.masks, strict=True)
            result["recall"] = torch.stack([(k & m).sum() / m.sum().clamp(min=1) for k, m in pairs])
        if not self.training and self._takes_masks:
            result |= accuracies(self._frozen, outcome.prompts, outcome.read, keep)
        return result
