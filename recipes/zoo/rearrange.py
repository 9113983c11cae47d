"""Trained decoder layers put in other places, one of them perhaps in several, its heads shared out among these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def rearrange(text: Any, order: Sequence[int], heads: Mapping[int, Sequence[int]], silent: Sequence[int]) -> None:
    """Changes a stock text model in place; see `ZooConfig`."""
    before = [{name: weight.clone() for name, weight in layer.state_dict().items()} for layer in text.layers]
    for layer, source in zip(text.layers, order or range(len(before)), strict=True):
        layer.load_state_dict(before[source])
    for index, kept in heads.items():
        _keep_heads(text.layers[index].self_attn.o_proj.weight, text.config.num_attention_heads, kept)
    for index in silent:
        text.layers[index].mlp.down_proj.weight.zero_()


def _keep_heads(weight: Tensor, count: int, kept: Sequence[int]) -> None:
    """`weight` `[C, count * d]` of an output projection: heads that are not kept write nothing."""
    by_head = weight.view(len(weight), count, -1)
    by_head[:, [head for head in range(count) if head not in kept]] = 0
