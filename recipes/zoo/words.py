"""Which tokens name what the tower has learned to show: the language model's start."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from foveate.scenes.palette import CHARACTERS, COLOR_NAMES, KEYS, MAX_CHARACTERS, SHAPES
from recipes.zoo import initialise
from recipes.zoo.heads import DenseHeads


def name_words(embedding: nn.Embedding, heads: DenseHeads, tokenizer: PreTrainedTokenizerFast) -> None:
    """Sets the embeddings of colours, shapes, keys and characters to the heads' directions."""
    rows = heads.directions()
    letters = torch.stack([rows[f"char{i}"] for i in range(MAX_CHARACTERS)]).mean(0)
    names: dict[str, Tensor] = dict(zip(COLOR_NAMES, rows["color"], strict=True))
    names |= dict(zip(SHAPES, rows["shape"], strict=True)) | dict(zip(KEYS, rows["key"], strict=True))
    names |= dict(zip(CHARACTERS, letters[: len(CHARACTERS)], strict=True))
    found: dict[int, Tensor] = {}
    for word, direction in names.items():
        for spelling in (word, f" {word}", f" {word}s"):
            tokens = tokenizer(spelling)["input_ids"]
            if len(tokens) == 1:
                found[tokens[0]] = direction
    with torch.no_grad():
        embedding.weight.normal_(0, 0.1)
        initialise.name_classes(embedding.weight, found)
