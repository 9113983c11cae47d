"""Forward hooks through which training sees and steers a frozen stock language model.

One pre-hook on every decoder layer. What belongs to a call travels with the call, as the keyword argument
`passenger`, which stock layers receive from the language model and which the hook takes out again. So calls do
not mix, also under gradient checkpointing. There are two kinds of passenger: a `Glimpse` adds the glimpse vectors
and reads the glimpse token's attention; `Gates` replace the attention masks after the pruning layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from foveate.core.attention import rotate
from foveate.glimpse.config import GlimpseConfig
from foveate.training.glimpse.inputs import Prompt

KEYWORD = "passenger"


class Passenger(Protocol):
    """Something that travels through the layers of one call."""

    def enter(self, index: int, layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Called before layer `index` with its input [B, L, D]; returns the input, may change `kwargs`."""


class EnoughSeen(Exception):  # noqa: N818 - control flow, not an error
    """Ends a call whose remaining layers would change nothing."""


@dataclass
class Glimpse:
    """One call's glimpse tokens.

    Attributes:
        vectors: [len(le_layers), le_length, hidden].
        first: [B] index of the first glimpse token of each row.
        prompt: the batch with glimpse tokens inserted.
        config: of the module.
        official: normalise log-probabilities over the answer too, as the published training code does.
        only_look: stop (`EnoughSeen`) when the last selected layer has been read.
        rows: what was read: layer -> [N, heads] for the N image tokens of the batch.
    """

    vectors: Tensor
    first: Tensor
    prompt: Prompt
    config: GlimpseConfig
    official: bool = False
    only_look: bool = False
    rows: dict[int, Tensor] = field(default_factory=dict)

    def enter(self, index: int, layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        if index > 0 and index in self.config.le_layers:
            hidden = self.add(hidden, index)
        if index in self.config.selected_layers:
            self.rows[index] = self.read(layer, hidden, kwargs["position_embeddings"])
            if self.only_look and index == max(self.config.selected_layers):
                raise EnoughSeen
        return hidden

    @property
    def features(self) -> Tensor:
        """Attention features of all image tokens, [N, selected layers * heads], layer-major."""
        return torch.cat([self.rows[i] for i in self.config.selected_layers], dim=-1)

    def add(self, hidden: Tensor, layer: int) -> Tensor:
        """Hidden states [B, L, D] entering `layer`, with its glimpse vector added to the glimpse tokens."""
        vectors = self.vectors[self.config.le_layers.index(layer)].to(hidden.dtype)
        rows = torch.arange(len(self.first), device=hidden.device)[:, None]
        columns = self.first[:, None] + torch.arange(len(vectors), device=hidden.device)
        return hidden.index_put((rows, columns), vectors.expand(len(rows), -1, -1), accumulate=True)

    def read(self, layer: nn.Module, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Attention of the last glimpse token over the image tokens in `layer`: [N, heads], float32.

        Logits `q.k / sqrt(d)` or, if the configuration says so, their log-softmax over all keys that the
        glimpse token sees.
        """
        attn: Any = layer.self_attn
        x = layer.input_layernorm(hidden)  # type: ignore[operator]
        cos, sin = (t[:, None].expand(len(x), -1, -1, -1) for t in rotary)
        k = attn.k_proj(x).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)
        k = rotate(k, cos, sin).float()
        rows, last = torch.arange(len(x), device=x.device), self.first + self.vectors.shape[1] - 1
        q = attn.q_proj(x[rows, last]).unflatten(-1, (-1, attn.head_dim))
        q = rotate(q, cos[rows, :, last], sin[rows, :, last]).float()
        grouped = q.unflatten(1, (k.shape[1], -1))
        logits = (grouped @ k.transpose(2, 3) * attn.scaling).flatten(1, 2)
        if not self.config.use_attention_logits:
            logits = logits.masked_fill(~self._seen(last)[:, None], -torch.inf).log_softmax(-1)
        return logits.transpose(1, 2)[self.prompt.visual]

    def _seen(self, last: Tensor) -> Tensor:
        valid = self.prompt.mask.bool()
        if self.official:
            return valid
        return valid & (torch.arange(valid.shape[1], device=valid.device) <= last[:, None])


@dataclass
class Gates:
    """Additive attention masks [B, 1, L, L] for layers up to and after the pruning layer."""

    early: Tensor
    late: Tensor
    reduce_layer: int

    def enter(self, index: int, layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        kwargs["attention_mask"] = self.early if index <= self.reduce_layer else self.late
        return hidden


def install(layers: nn.ModuleList) -> list[RemovableHandle]:
    """Prepare decoder layers to carry a `Passenger`. Without one in the call the hooks do nothing."""
    return [layer.register_forward_pre_hook(_before(index), with_kwargs=True) for index, layer in enumerate(layers)]


def _before(index: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]:
    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        passenger: Passenger | None = kwargs.pop(KEYWORD, None)
        if passenger is None:
            return args, kwargs
        hidden = passenger.enter(index, layer, args[0], kwargs)
        return (hidden, *args[1:]), kwargs

    return hook


def run(text: nn.Module, prompt: Prompt, passenger: Passenger | None = None) -> Tensor:
    """Hidden states [B, L, D] after the language model's final norm."""
    mask = passenger.early if isinstance(passenger, Gates) else prompt.mask
    extra = {} if passenger is None else {KEYWORD: passenger}
    return text(
        inputs_embeds=prompt.embeds,
        attention_mask=mask,
        position_ids=prompt.positions,
        use_cache=False,
        **extra,
    ).last_hidden_state
