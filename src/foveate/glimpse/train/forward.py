"""Forward hooks that let a glimpse token run through a frozen stock language model.

One pre-hook on every decoder layer adds the layer's glimpse vector, reads the glimpse token's attention at the
selected layers, and, for distillation, replaces the attention mask after the pruning layer. What belongs to a
call travels with the call, as the keyword argument `glimpse` that stock layers receive from the language model
and that the hook takes out again. So calls do not mix, also under gradient checkpointing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.attention import rotate
from foveate.glimpse.config import GlimpseConfig
from foveate.glimpse.train.inputs import Prompt

KEYWORD = "glimpse"


@dataclass
class Glimpse:
    """One call's glimpse token.

    Attributes:
        vectors: [len(le_layers), le_length, hidden].
        first: [B] index of the first glimpse token of each row.
        prompt: the batch with glimpse tokens inserted.
        config: of the module.
        official: normalise log-probabilities over the answer too, as the published training code does.
        late_mask: makes the additive mask [B, 1, L, L] for layers after `config.reduce_layer`, from the
            attention read so far; called once.
        rows: what was read: layer -> [N, heads] for the N image tokens of the batch.
    """

    vectors: Tensor
    first: Tensor
    prompt: Prompt
    config: GlimpseConfig
    official: bool = False
    late_mask: Callable[[Glimpse], Tensor] | None = None
    rows: dict[int, Tensor] = field(default_factory=dict)
    _mask: Tensor | None = None

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

    def mask_after_pruning(self) -> Tensor:
        if self._mask is None:
            assert self.late_mask is not None
            self._mask = self.late_mask(self)
        return self._mask


def install(layers: nn.ModuleList) -> list[torch.utils.hooks.RemovableHandle]:
    """Prepare decoder layers to carry a `Glimpse`. Without one in the call the hooks do nothing."""
    return [layer.register_forward_pre_hook(_before(index), with_kwargs=True) for index, layer in enumerate(layers)]


def _before(index: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]:
    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        glimpse: Glimpse | None = kwargs.pop(KEYWORD, None)
        if glimpse is None:
            return args, kwargs
        config, hidden = glimpse.config, args[0]
        if index > 0 and index in config.le_layers:
            hidden = glimpse.add(hidden, index)
        if index in config.selected_layers:
            glimpse.rows[index] = glimpse.read(layer, hidden, kwargs["position_embeddings"])
        if glimpse.late_mask is not None and index > config.reduce_layer:
            kwargs["attention_mask"] = glimpse.mask_after_pruning()
        return (hidden, *args[1:]), kwargs

    return hook


def run(text: nn.Module, prompt: Prompt, mask: Tensor | None = None, glimpse: Glimpse | None = None) -> Tensor:
    """Hidden states [B, L, D] after the language model's final norm.

    `mask` replaces the prompt's padding mask by an additive one, [B, 1, L, L].
    """
    extra = {} if glimpse is None else {KEYWORD: glimpse}
    return text(
        inputs_embeds=prompt.embeds,
        attention_mask=prompt.mask if mask is None else mask,
        position_ids=prompt.positions,
        use_cache=False,
        **extra,
    ).last_hidden_state
