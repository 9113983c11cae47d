"""What is done in the layers of a pass: prompts read once, a glimpse token that looks, an answer under gates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from foveate.core.attention import attention_logits
from foveate.engine.capture import KEY_BIAS, LISTENER, AttentionCall
from foveate.engine.naming import CACHE
from foveate.engine.reading import read_probe
from foveate.errors import UnsupportedModelError
from foveate.glimpse.config import GlimpseConfig
from foveate.training.glimpse.inputs import PromptBatch

FLOOR = -1000.0
"""Logit that removes a key: its weight is 0 in every precision, and a row of such keys stays finite."""

Kwargs = dict[str, Any]


class LayerPlan(Protocol):
    """What is to be done in the layers of one pass."""

    def enter(self, layer: int, hidden: Tensor, kwargs: Kwargs) -> Tensor:
        """Called before a layer with its input `[B, n, D]` and its other arguments; returns the input."""


class LayersDone(Exception):  # noqa: N818 - control flow, not an error
    """Ends a pass whose remaining layers would change nothing."""


class PromptCache(DynamicCache):
    """Keys and values of prompts, for passes that go on behind them; what follows is not added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.sealed = False

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if not self.sealed:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        held: Any = self.layers[layer_idx]
        return torch.cat([held.keys, key_states], -2), torch.cat([held.values, value_states], -2)

    def seal(self, length: int) -> None:
        """Keep the first `length` columns, for good."""
        for layer in self.layers:
            held: Any = layer
            held.keys, held.values = held.keys[:, :, :length], held.values[:, :, :length]
        self.sealed = True


@dataclass
class PromptReading:
    """Reads prompts, and their answers if wanted.

    Attributes:
        until: last layer that is needed; None: all.
        split: layer from whose input on a student goes his own way; None: there is none.
        causal: whether the attention backend makes the causal mask itself; then none is kept.
        entering: `[B, P + A, D]` input of layer `split`.
        arguments: what stock code gives to the layers from `split` on.
    """

    until: int | None
    split: int | None
    causal: bool
    entering: Tensor | None = None
    arguments: dict[int, Kwargs] = field(default_factory=dict)

    def enter(self, layer: int, hidden: Tensor, kwargs: Kwargs) -> Tensor:
        if self.until is not None and layer > self.until:
            raise LayersDone
        if self.split is not None and layer >= self.split:
            other = {CACHE: None, "use_cache": False} | ({"attention_mask": None} if self.causal else {})
            self.arguments[layer] = {name: other.get(name, x) for name, x in kwargs.items()}
            if layer == self.split:
                self.entering = hidden
        return hidden


@dataclass(frozen=True)
class Read:
    """What the language model made of a batch.

    Attributes:
        cache: keys and values of the prompts.
        hidden: `[B, P (+ A), D]` its output, None if not all layers ran.
        late: what a student needs who goes his own way behind some layer.
    """

    cache: PromptCache
    hidden: Tensor | None
    late: PromptReading


@dataclass
class Look:
    """Adds the glimpse vectors and keeps the queries and keys that are read.

    Attributes:
        vectors: `[len(le_layers), g, D]`.
        config: of the module.
        whole: run all layers; else stop behind the last one that is read.
        calls: by layer, what its attention function was given.
    """

    vectors: Tensor
    config: GlimpseConfig
    whole: bool
    calls: dict[int, AttentionCall] = field(default_factory=dict)

    def enter(self, layer: int, hidden: Tensor, kwargs: Kwargs) -> Tensor:
        if not self.whole and layer > max(self.config.selected_layers):
            raise LayersDone
        if layer > 0 and layer in self.config.le_layers:
            vectors = self.vectors[self.config.le_layers.index(layer)].to(hidden.dtype)
            g = vectors.shape[0]
            hidden = torch.cat([hidden[:, :g] + vectors, hidden[:, g:]], dim=1)
        if layer in self.config.selected_layers:
            kwargs[LISTENER] = lambda call: self.calls.__setitem__(layer, call)
        return hidden

    def features(self, prompts: PromptBatch, official: bool) -> Tensor:
        """`[N, selected layers * heads]` attention of the last glimpse token over the visual tokens, layer-major.

        Logits `q.k / sqrt(d)` or, if the configuration says so, their log-softmax over all keys that the glimpse token
        sees; `official`: over the answer's too, as the published training code has it.
        """
        layers = []
        for layer in self.config.selected_layers:
            if layer not in self.calls:
                raise UnsupportedModelError(
                    f"decoder layer {layer} does not hand its arguments to its attention function, so the glimpse "
                    "token's attention cannot be read there"
                )
            layers.append(self._rows(self.calls[layer], prompts, official))
        return torch.cat([torch.cat(rows, dim=-1).T for rows in layers], dim=-1)

    def _rows(self, call: AttentionCall, prompts: PromptBatch, official: bool) -> list[Tensor]:
        """Per row of the batch, `[heads, N_b]`."""
        g, end = prompts.glimpses, prompts.length + prompts.glimpses
        own = AttentionCall(call.q[:, :, :g], call.k[:, :, :end], call.scaling)
        reading = read_probe(own, g, prompts.valid[:, :end], None, past=0)
        totals = reading.total[:, :, -1]
        if official:
            totals = _over_everything(call, g - 1, prompts.valid)
        found = []
        for row, columns in enumerate(prompts.columns):
            logits = reading.logits[row, :, -1].index_select(-1, columns.to(reading.logits.device))
            found.append(logits if self.config.use_attention_logits else logits - totals[row][:, None])
        return found


def _over_everything(call: AttentionCall, query: int, valid: Tensor) -> Tensor:
    """`[B, H]` log of the softmax normaliser of one query over all keys, later ones included."""
    totals = []
    for q, k, real in zip(call.q, call.k, valid, strict=True):
        logits = attention_logits(q[:, query : query + 1], k, call.scaling)[:, 0]
        totals.append(logits.masked_fill(~real.to(logits.device), -torch.inf).logsumexp(-1))
    return torch.stack(totals)


@dataclass
class Gated:
    """Runs answers where visual keys carry a bias, as pruning behind a layer would have them.

    Up to the layer before `late.split` only the answers run, on the keys of the prompts, of which pruning compacts the
    caches. From there on prompts run too: what they read before anything was pruned is the same with and without gates.

    Attributes:
        bias: `[B, P]` added to the logits of the prompts' keys.
        valid: `[B, P + A]` bool, False on padding.
        late: what was read without gates.
        heard: layers whose attention functions were given the bias.
    """

    bias: Tensor
    valid: Tensor
    late: PromptReading
    heard: set[int] = field(default_factory=set)

    def enter(self, layer: int, hidden: Tensor, kwargs: Kwargs) -> Tensor:
        split, length = self.late.split, self.bias.shape[1]
        assert split is not None
        bias = nn.functional.pad(self.bias, (0, self.valid.shape[1] - length))
        if layer >= split:
            kwargs.clear()
            kwargs.update(self.late.arguments[layer])
            bias = bias.masked_fill(~self.valid, FLOOR)  # padding, where there is no mask
        if layer == split:
            assert self.late.entering is not None
            hidden = torch.cat([self.late.entering[:, :length], hidden], dim=1)
        kwargs[KEY_BIAS], kwargs[LISTENER] = bias, lambda call: self.heard.add(layer)
        return hidden

    def check(self, layers: int) -> None:
        """Raise `UnsupportedModelError` unless all layers took the bias."""
        if missing := set(range(layers)) - self.heard:
            raise UnsupportedModelError(
                f"decoder layers {sorted(missing)} do not hand their arguments to their attention functions, so they "
                "cannot be gated; train with evidence boxes instead"
            )
