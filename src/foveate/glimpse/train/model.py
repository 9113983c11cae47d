"""A frozen base model and the module that learns, as one `nn.Module` for a trainer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from foveate.errors import ConfigurationError, UnsupportedModelError
from foveate.families import adapt
from foveate.glimpse.module import GlimpseModule
from foveate.glimpse.train import forward as hooks
from foveate.glimpse.train.inputs import encode
from foveate.glimpse.train.objectives import Frozen, Objective, Outcome, distilled, supervised

TERMS = ("le_loss", "dice_loss", "bce_loss", "loc_loss", "kl_loss", "keep_loss")


class GlimpseForTraining(nn.Module):
    """Trains `module` for the stock model `base`, which stays frozen and, but for hooks, untouched.

    Use it as a context manager, or call `remove_hooks` when done.

    Raises:
        UnsupportedModelError: `base` is of no supported family.
        CheckpointError: `module` was made for a model of other sizes.
        ConfigurationError: distillation is asked for, but nothing follows the pruning layer or the attention
            backend takes no additive mask.
    """

    accepts_loss_kwargs = False  # the Trainer would otherwise hand us, and expect us to use, token counts

    def __init__(self, base: nn.Module, module: GlimpseModule, objective: Objective | None = None) -> None:
        super().__init__()
        module.check_fits(base)
        self.base = base.requires_grad_(False).eval()
        self.module = module
        self.objective = objective or Objective()
        head = base.get_output_embeddings()  # type: ignore[operator]
        if head is None:
            raise UnsupportedModelError(
                f"{type(base).__name__} has no language model head; load it with AutoModelForImageTextToText"
            )
        self._frozen = Frozen(adapt(base), head)
        self._check_distillation()
        self._checkpointing = False
        self._handles = hooks.install(self._frozen.family.parts.layers)

    @property
    def _layers(self) -> Any:
        return self._frozen.family.parts.layers

    def _check_distillation(self) -> None:
        if not self.objective.distillation:
            return
        config, attention = self.module.config, self.base.config._attn_implementation  # type: ignore[union-attr]
        if config.reduce_layer >= config.num_hidden_layers - 1:
            raise ConfigurationError(
                f"distillation needs layers after reduce_layer={config.reduce_layer}, but the model has "
                f"{config.num_hidden_layers}; choose a smaller reduce_layer"
            )
        if attention not in ("sdpa", "eager"):
            raise ConfigurationError(
                f"distillation adds a bias to attention, which {attention!r} cannot do; load the model with "
                "attn_implementation='sdpa'"
            )

    def remove_hooks(self) -> None:
        """Leave the base model as it was."""
        for handle in self._handles:
            handle.remove()
        if self._checkpointing:
            for layer in self._layers:
                layer.gradient_checkpointing = layer.training = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove_hooks()

    def train(self, mode: bool = True) -> Self:
        """The module follows `mode`; the base stays in evaluation mode (no dropout)."""
        super().train(mode)
        self.base.eval()
        for layer in self._layers:
            # Only the flag of the layer itself, which gradient checkpointing looks at.
            layer.training = mode and self._checkpointing
        return self

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recompute every n-th decoder layer in the backward pass instead of storing its activations.

        Set on the layers themselves: the stock switch also makes the embeddings require gradients. The name
        and the arguments are those that `transformers.Trainer` calls.
        """
        options = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        if options["use_reentrant"] or offload:
            raise ConfigurationError(
                "gradient checkpointing with use_reentrant=True loses the glimpse token's gradients, and "
                "offload is not supported; leave both out"
            )
        for index, layer in enumerate(self._layers):
            layer._gradient_checkpointing_func = partial(checkpoint, **options)
            layer.gradient_checkpointing = index % every_n_layers == 0
        self._checkpointing = True
        self.train(self.training)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """The name by which older transformers call `activation_checkpointing_enable`."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    def outcome(self, ref_masks: Sequence[Tensor] | None = None, **batch: Tensor) -> Outcome:
        """Loss terms of a batch.

        Args:
            ref_masks: evidence masks per row, [N_b] bool in raster order; needed for localization.
            batch: arguments of the base model's forward, with `labels` (-100 outside the answer).
        """
        objective, module = self.objective, self.module
        if objective.uses_boxes and ref_masks is None:
            raise ConfigurationError("the localization loss needs evidence boxes; set its weight to 0 without")
        prompt = encode(self._frozen.family, batch, module.config.vision_blocks)
        parts = []
        if objective.supervised:
            parts.append(supervised(self._frozen, module, prompt, ref_masks, objective))
        if objective.distillation:
            parts.append(distilled(self._frozen, module, prompt, objective))
        if not parts:
            raise ConfigurationError("all loss weights are 0, so there is nothing to learn")
        terms = {name: term for part in parts for name, term in part.terms.items()}
        return Outcome(terms, torch.stack([part.total for part in parts]).sum(), parts[-1].logits)

    def forward(self, ref_masks: Sequence[Tensor] | None = None, **batch: Tensor) -> dict[str, Tensor]:
        """Scalar `loss` and, each [B], its terms, `kept` (fraction of visual tokens) and `recall` of evidence."""
        outcome = self.outcome(ref_masks, **batch)
        threshold = self.module.config.threshold
        keep = [row[-1].detach().float().sigmoid() > threshold for row in outcome.logits]
        size = len(keep)
        result = {"loss": outcome.total}
        result |= {k: outcome.terms[k].detach().float().expand(size) for k in TERMS if k in outcome.terms}
        result["kept"] = torch.stack([k.float().mean() for k in keep])
        if ref_masks is not None:
            pairs = zip(keep, ref_masks, strict=True)
            found = [(k & m.flatten()).sum() / m.sum().clamp(min=1) for k, m in pairs]
            result["recall"] = torch.stack(found)
        return result
