"""Decoder layers of a start move, and share out their heads."""

from __future__ import annotations

import copy

import torch
from transformers import LlamaConfig, LlamaModel

from recipes.zoo.rearrange import rearrange


def test_layers_of_the_start_move_where_the_recipe_says():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 4, "vocab_size": 8}
    text = LlamaModel(LlamaConfig(**sizes, num_hidden_layers=3))
    before = copy.deepcopy(text.layers)

    def other(layer: int, source: int) -> list[str]:
        mine, theirs = text.layers[layer].state_dict(), before[source].state_dict()
        return [name for name in mine if not torch.equal(mine[name], theirs[name])]

    rearrange(text, (), {}, ())
    assert not any(other(i, i) for i in range(3))
    rearrange(text, (2, 0, 0), {1: (0, 3)}, (2,))
    assert other(0, 2) == []
    assert other(1, 0) == ["self_attn.o_proj.weight"]
    assert other(2, 0) == ["mlp.down_proj.weight"]
    assert not text.layers[2].mlp.down_proj.weight.any()
    changed = text.layers[1].self_attn.o_proj.weight
    kept = before[0].self_attn.o_proj.weight.clone()
    kept[:, 4:12] = 0  # heads 1 and 2 of four
    assert torch.equal(changed, kept)
