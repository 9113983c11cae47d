"""Passes of a frozen stock language model, as training steers and reads them.

A prompt is read once, without gradients; whatever is tried behind it (glimpse tokens, the answer under gates) runs on
the keys and values that it left. One pre-hook on every decoder layer. What belongs to a pass travels with it, as a
keyword argument that stock layers receive from the language model and that the hook takes out again: passes do not mix,
also when gradient checkpointing runs a layer again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from foveate.engine.capture import LISTENER, AttentionCall, Listening
from foveate.engine.naming import CACHE
from foveate.errors import MissingTapError, UnsupportedModelError
from foveate.families.base import Family
from foveate.training.glimpse.inputs import PromptBatch
from foveate.training.glimpse.plans import Gated, Kwargs, LayerPlan, LayersDone, PromptCache, PromptReading, Read
from foveate.training.losses import IGNORE
from foveate.training.sharding import left, listening

KEYWORD = "foveate_plan"


@dataclass(frozen=True)
class LanguageModel:
    """A frozen language model with its head, prepared to carry plans.

    Attributes:
        rerun: layers that a backward pass may run again instead of storing what they compute: those of them in which
            prompts run with gradients (`Gated`). Elsewhere only glimpse tokens and answers have any.
    """

    family: Family
    head: nn.Module
    rerun: list[Any] = field(default_factory=list)

    @property
    def _is_causal(self) -> bool:
        """Whether attention without a mask is plain causal attention in all layers."""
        config: Any = self.family.parts.text.config
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        return config._attn_implementation == "sdpa" and kinds == {"full_attention"}

    def install(self) -> list[Any]:
        """Handles of everything that is put on the model; without a plan in a pass it does nothing."""
        handles: list[Any] = []
        try:
            for index, layer in enumerate(self.family.parts.layers):
                handles.append(layer.register_forward_pre_hook(_before(index), with_kwargs=True))
                with suppress(MissingTapError, UnsupportedModelError):  # said if it is needed there
                    handles.append(Listening(self.family.layer_attention(index), _ignore))
        except BaseException:
            for handle in handles:
                handle.remove()
            raise
        return handles

    @torch.no_grad()
    def read(self, prompts: PromptBatch, answers: bool, until: int | None, split: int | None) -> Read:
        """Read the prompts of a batch, with their answers behind them or without.

        Args:
            until, split: see `PromptReading`.
        """
        plan, cache, hidden = PromptReading(until, split, self._is_causal), PromptCache(), None
        arguments = prompts.without_glimpses() if answers else prompts.before()
        with suppress(LayersDone):
            hidden = self._run(plan, **arguments, **{CACHE: cache})
        cache.seal(prompts.length)
        return Read(cache, hidden, plan)

    def behind(
        self, read: Read, prompts: PromptBatch, embeds: Tensor, plan: LayerPlan, glimpses: bool, answers: bool
    ) -> Tensor:
        """The output for `embeds` `[B, n, D]` that follow the prompts; of prompts too, where the plan brings them in.

        Raises:
            LayersDone: if the plan stops.
        """
        positions, mask = prompts.behind(glimpses, answers)
        more = {} if positions is None else {"position_ids": positions}
        start = plan.late.split if isinstance(plan, Gated) else None
        with self._rerunning(start):
            return self._run(plan, inputs_embeds=embeds, attention_mask=mask, **{CACHE: read.cache}, **more)

    @contextmanager
    def _rerunning(self, start: int | None) -> Iterator[None]:
        """Checkpoint the chosen layers from `start` on. The rest use a cache, which checkpointing forbids."""
        late = [] if start is None or not torch.is_grad_enabled() else list(self.family.parts.layers)[start:]
        chosen = [layer for layer in self.rerun if any(layer is other for other in late)]
        for layer in chosen:  # only the flag of the layer itself: inside, all is in evaluation mode
            layer.gradient_checkpointing = layer.training = True
        try:
            yield
        finally:
            for layer in chosen:
                layer.gradient_checkpointing = layer.training = False

    def _run(self, plan: LayerPlan, **arguments: Any) -> Tensor:
        output: Any = self.family.parts.text(**arguments, use_cache=True, **{KEYWORD: plan})
        found: Tensor = output.last_hidden_state
        return found

    def predictions(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[T, V]` for the T answer tokens from the hidden states `[B, A, D]` before each, and the tokens."""
        rows, columns = (labels != IGNORE).nonzero(as_tuple=True)
        return self.head(hidden[rows, columns]), labels[rows, columns]


def _ignore(call: AttentionCall) -> None:
    """Passes bring their own listeners."""


def _before(index: int) -> Callable[[nn.Module, tuple[Any, ...], Kwargs], Any]:
    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> Any:
        plan: LayerPlan | None = kwargs.pop(KEYWORD, None)
        if plan is None:
            return args, kwargs
        try:
            hidden = plan.enter(index, args[0] if args else kwargs.pop("hidden_states"), kwargs)
        except LayersDone:
            left(layer)
            raise
        if LISTENER in kwargs:
            kwargs[LISTENER] = listening(layer, kwargs[LISTENER])
        return (hidden, *args[1:]), kwargs

    return hook
