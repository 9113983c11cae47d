"""A prompt that several rows of a batch share, as completions of a group do, is read once for all of them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from foveate.engine.naming import CACHE

FIELDS = {"pixel_values", "image_grid_thw", "mm_token_type_ids", "token_type_ids"}
"""What a processor may give beside the ids, if prompts are to be shared: its layout is known."""

COLUMNS = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
"""Inputs with a column for each token."""

HEAD = ("labels", "fused_lm_head")
"""Inputs of TRL's head, which scores labels."""


@dataclass(frozen=True)
class Shared:
    """Which rows of a batch have the same prompt.

    Attributes:
        first: the first row of each distinct prompt.
        owner: for every row, the place of its prompt in `first`.
        images: number of images of every row.
    """

    first: tuple[int, ...]
    owner: tuple[int, ...]
    images: tuple[int, ...]

    @classmethod
    def of(cls, keys: Sequence[Hashable], images: Sequence[int], fields: Mapping[str, Any]) -> Shared | None:
        """Rows with equal keys have the same prompt. None if nothing is shared, or if it is not known which pixels
        belong to which row.

        Args:
            fields: what the processor gave beside the ids.
        """
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        given = {name for name, value in fields.items() if value is not None}
        pixels = fields.get("pixel_values")
        known = pixels is not None and ("image_grid_thw" in given or len(pixels) == sum(images))
        if len(first) == len(keys) or not known or given - FIELDS:
            return None
        rows = tuple(sorted(first.values()))
        return cls(rows, tuple(rows.index(first[key]) for key in keys), tuple(images))

    @property
    def times(self) -> int | None:
        """How many rows every prompt has, if as many each, side by side."""
        times = len(self.owner) // len(self.first)
        return times if self.owner == tuple(row // times for row in range(times * len(self.first))) else None

    def narrow(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs of a model for one row of each prompt."""
        return {name: self._narrowed(name, value, inputs) for name, value in inputs.items()}

    def _narrowed(self, name: str, value: Any, inputs: Mapping[str, Any]) -> Any:
        if name == "mm_encoder_outputs":  # images that `generate` had encoded before
            return {kind: self._encoded(found) for kind, found in (value or {}).items()}
        if name in ("pixel_values", "image_grid_thw") and value is not None:
            value, grids = _tensor(value), inputs.get("image_grid_thw")
            sizes = [1] * sum(self.images)
            if name == "pixel_values" and grids is not None:
                sizes = _tensor(grids).prod(-1).tolist()
            return torch.cat(self._of_first(value.split(sizes)))
        if isinstance(value, list) and len(value) == len(self.owner):
            return [value[row] for row in self.first]
        if not isinstance(value, Tensor) or value.dim() < 2:
            return value
        axis = value.dim() - 2 if name == "position_ids" else 0  # with axes in front, for M-RoPE
        rowwise = value.shape[axis] == len(self.owner)
        return value.index_select(axis, torch.tensor(self.first, device=value.device)) if rowwise else value

    def _encoded(self, found: Any) -> Any:
        layers = getattr(found, "deepstack_features", None)
        own = {"pooler_output": self._of_first(found.pooler_output)}
        if layers is not None:
            own["deepstack_features"] = [self._of_first(features) for features in layers]
        return type(found)(**{**found, **own})

    def _of_first(self, images: Sequence[Any]) -> list[Any]:
        """Of one entry for every image those of the first rows."""
        starts = [sum(self.images[:row]) for row in self.first]
        return [
            x for start, row in zip(starts, self.first, strict=True) for x in images[start : start + self.images[row]]
        ]

    def spread(self, values: Sequence[Any]) -> list[Any]:
        """What belongs to the prompts, for every row."""
        return [values[place] for place in self.owner]

    def spread_cache(self, cache: DynamicCache) -> None:
        """A row of keys and values for every row of the batch."""
        cache.batch_select_indices(torch.tensor(self.owner, device=_device(cache)))


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(np.array(value))


def _device(cache: DynamicCache) -> torch.device | None:
    keys = (getattr(layer, "keys", None) for layer in cache.layers)
    return next((found.device for found in keys if found is not None), None)


@contextmanager
def read_once(model: nn.Module, shared: Shared | None) -> Iterator[None]:
    """Within the block `model.generate`, given every prompt once and `num_return_sequences=shared.times`, reads it once
    for all of them: stock code copies it before it is read.
    """
    if shared is None:
        yield
        return
    read = False

    def narrow(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return None if read else (args, shared.narrow(kwargs))

    def spread(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        nonlocal read
        if not read:
            output.logits = output.logits[list(shared.owner)]
            shared.spread_cache(output.past_key_values)
        read = True

    handles = [model.register_forward_pre_hook(narrow, with_kwargs=True), model.register_forward_hook(spread)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Scores:
    """What TRL asks of a model with a fused head, for completion tokens only."""

    log_probs: Tensor
    entropy: Tensor


def score_once(
    model: Any, shared: Shared, cache: DynamicCache, inputs: Mapping[str, Any], length: int, temperature: float
) -> Scores:
    """Log-probabilities and entropies of completion tokens: the prompts are read into `cache`, then the completions of
    all rows behind them. Gradients flow through the cache.

    Args:
        inputs: of the whole batch, prompts and completions, with `labels`.
        length: columns of the completions.
    """
    labels = inputs["labels"][:, -length:]
    prompts = {n: x[:, :-length] if n in COLUMNS else x for n, x in inputs.items() if n not in HEAD}
    output = model(**shared.narrow(prompts), **{CACHE: cache}, use_cache=True, logits_to_keep=1)
    scores = (output.logits[:, -1].float() / temperature).log_softmax(-1)[list(shared.owner)]
    first = scores.gather(1, labels[:, :1].clamp(min=0)).masked_fill(labels[:, :1] == -100, 0)
    entropy = -(scores.exp() * scores).sum(1, keepdim=True).masked_fill(labels[:, :1] == -100, 0).detach()
    if length == 1:
        return Scores(first, entropy)
    shared.spread_cache(cache)
    later = model(
        input_ids=inputs["input_ids"][:, -length:-1],
        attention_mask=inputs["attention_mask"][:, :-1],
        shift_labels=labels[:, 1:],
        fused_lm_head=True,
        **{CACHE: cache},
    )
    return Scores(torch.cat([first, later.log_probs], 1), torch.cat([entropy, later.entropy], 1))
