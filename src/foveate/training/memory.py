"""What a training step needs: weights, gradients, optimiser, activations, by formula, before anything has run.

Activations are counted as autograd stores them where weights are frozen: a linear layer stores nothing, a norm its
input in float32 (in half precision the same once more), attention its queries, keys, values and output, a gated MLP
three inner widths. Scores of queries times keys are stored nowhere (sdpa).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foveate.families import adapt

GIB = 1024**3
ROOM = 0.9
"""Share of what is free that a step may be estimated to need: fragments and other programs take some."""


@dataclass(frozen=True)
class TextSizes:
    """A language model as numbers.

    Attributes:
        layers: decoder layers.
        width, inner: of the hidden states, and of the MLP (in a mixture of all experts that a token visits).
        queries, keys: heads times width of a head.
        heads: of the queries.
        words: of the vocabulary.
        item: bytes of an activation.
    """

    layers: int
    width: int
    inner: int
    queries: int
    keys: int
    heads: int
    words: int
    item: int

    @classmethod
    def of(cls, text: Any, item: int) -> TextSizes:
        """Those of a configuration."""
        heads = text.num_attention_heads
        head = getattr(text, "head_dim", None) or text.hidden_size // heads
        experts = getattr(text, "num_experts_per_tok", None) or 1
        mixed = getattr(text, "moe_intermediate_size", None) or text.intermediate_size
        inner = mixed * experts if experts > 1 else text.intermediate_size
        own = getattr(text, "num_key_value_heads", None) or heads
        return cls(
            text.num_hidden_layers, text.hidden_size, inner, heads * head, own * head, heads, text.vocab_size, item
        )

    def stored(self, biased: bool = False, adapted: bool = False) -> int:
        """Bytes that a decoder layer stores for one token until the backward pass.

        Args:
            biased: keys carry a bias (`engine.capture.with_key_bias`).
            adapted: linear layers have adapters, which store their inputs, with dropout.
        """
        wide = self.queries + (8 * self.heads if biased else 0)  # keys and values repeated for all heads
        norms = 2 * self.width * (4 if self.item == 4 else 4 + self.item)
        found = norms + self.item * (4 * wide + 3 * self.inner)
        if adapted:  # inputs of q, k, v and of both halves of the MLP, its last layer's and attention's
            found += 2 * self.item * (5 * self.width + self.queries + self.inner)
        return found

    def joined(self, biased: bool = False) -> int:
        """Bytes per token of a prompt's keys and values that a layer stores for what runs behind the prompt."""
        wide = self.queries + (8 * self.heads if biased else 0)
        return 2 * self.item * (wide + self.keys)

    @property
    def cached(self) -> int:
        """Bytes of keys and values of one token in all layers."""
        return 2 * self.keys * self.layers * self.item

    @property
    def running(self) -> int:
        """Bytes of one token while a layer runs without gradients."""
        return self.item * max(3 * self.inner + 2 * self.width, 4 * self.queries + 4 * self.width)


@dataclass(frozen=True)
class Cost:
    """Bytes, for one process.

    Attributes:
        weights: of all models.
        gradients, optimizer: of what learns (AdamW keeps two more numbers per weight).
        reading: of prompts without gradients, and what is kept of them.
        stored: activations until the backward pass, everything stored.
        rerun: the same where layers are run again (activation checkpointing).
    """

    weights: int
    gradients: int
    optimizer: int
    reading: int
    stored: int
    rerun: int

    def step(self, checkpointed: bool) -> int:
        """What a step needs beyond weights and optimiser."""
        return self.gradients + self.reading + (self.rerun if checkpointed else self.stored)

    def total(self, checkpointed: bool) -> int:
        return self.weights + self.optimizer + self.step(checkpointed)

    def line(self, free: int | None, checkpointed: bool) -> str:
        """For a person."""
        parts = [
            f"weights {_shown(self.weights)}", f"gradients and optimiser {_shown(self.gradients + self.optimizer)}",
            f"prompts {_shown(self.reading)}", f"activations {_shown(self.stored)} ({_shown(self.rerun)} checkpointed)",
        ]  # fmt: skip
        room = "" if free is None else f"; {_shown(free)} free"
        how = "checkpointed" if checkpointed else "not checkpointed"
        return f"memory, estimated: {', '.join(parts)}{room}: {how}, {_shown(self.total(checkpointed))} in all"


def _shown(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB // 100 else f"{size / 1024**2:.1f} MiB"


def estimate(model: Any, rows: int, length: int) -> Cost:
    """What a step of a `GlimpseForTraining` needs.

    Args:
        rows, length: of a batch as the model gets it, in tokens.
    """
    sizes = TextSizes.of(adapt(model.base).parts.text.config, _item(model.base))
    return glimpse_cost(
        sizes, model.objective, model.module.config, bytes_of(model), _learning(model.module), rows * length
    )


def glimpse_cost(sizes: TextSizes, objective: Any, config: Any, weights: int, learning: int, tokens: int) -> Cost:
    """The same from numbers.

    Args:
        weights: bytes of all weights.
        learning: weights that learn.
        tokens: of a batch.
    """
    looking = sizes.layers if objective.language else max(config.selected_layers) + 1
    read = sizes.layers if objective.distillation else looking
    early = config.reduce_layer + 1 if objective.distillation else 0
    late = sizes.layers - early if objective.distillation else 0
    kept = tokens * sizes.cached * read // sizes.layers
    if objective.distillation:  # the input of the layer behind the pruning layer, the output, rotary embeddings
        kept += tokens * sizes.item * (3 * sizes.width + 2 * sizes.queries // sizes.heads)
    predictor = tokens * 4 * 12 * (config.vip_width + config.vip_cond_width) * len(config.selected_visual_layers)
    behind = tokens * (looking * sizes.joined() + early * sizes.joined(biased=True)) + predictor
    layer = tokens * sizes.stored(biased=True)
    rerun = late * tokens * sizes.width * sizes.item + layer + tokens * sizes.running if late else 0
    reading = kept + tokens * sizes.running
    return Cost(weights, 4 * learning, 8 * learning, reading, behind + late * layer, behind + rerun)


def _item(model: nn.Module) -> int:
    return next(p for p in model.parameters() if p.is_floating_point()).element_size()


def bytes_of(model: nn.Module, device: torch.device | None = None) -> int:
    """Bytes of the weights that this process holds, those on a device if one is given."""
    own = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
    return sum(p.numel() * p.element_size() for p in own if device is None or p.device.type == device.type)


def _learning(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process can still take, None if that is not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = Path("/proc/meminfo")
    if device.type != "cpu" or not found.is_file():
        return None
    line = next((line for line in found.read_text().splitlines() if line.startswith("MemAvailable")), None)
    return None if line is None else int(line.split()[1]) * 1024
