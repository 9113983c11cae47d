"""A language model as numbers: all that an analytic count of its operations needs, read from its modules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from foveate.errors import UnsupportedModelError
from foveate.families.base import Family
from foveate.families.parts import attention_of
from foveate.families.probed import parameters

OUTPUTS = ("o_proj", "out_proj", "dense", "wo", "attn_out")
"""What attention modules call their last projection."""

EVERY_EXPERT = ("Llama4TextExperts",)
"""Experts that stock code runs on every token, chosen or not."""

CHUNK = 64
"""Tokens that the chunked gated delta rule reads at once."""


@dataclass(frozen=True)
class Layer:
    """One decoder layer.

    Attributes:
        linear: operations of its linear layers for one token (of a mixture, the experts that a token visits).
        pair: operations of the two products of attention for one query and one key; 0 without attention.
        expand: operations that a decoding step spends on every key it finds in the cache (latent attention).
        chunk: operations of a recurrent layer for every `CHUNK` tokens of a prompt, begun ones included; its step over
            one token has no products of matrices.
        last_only: whether stock code runs it on a prompt's last token alone, as long as nothing is pruned.
    """

    linear: int
    pair: int
    expand: int = 0
    chunk: int = 0
    last_only: bool = False


@dataclass(frozen=True)
class Geometry:
    """A language model as numbers.

    Attributes:
        family: model type.
        layers: its decoder layers.
        before: operations for one token before its layers.
        behind: for one token behind them, but for the LM head.
        head: operations of the LM head for one token.
        head_reads_all: whether the LM head is run on every token of a prompt, not on the last alone.
    """

    family: str
    layers: tuple[Layer, ...]
    before: int
    behind: int
    head: int
    head_reads_all: bool

    @classmethod
    def of(cls, family: Family) -> Geometry:
        """Read the numbers from a model's modules, which may be on the meta device.

        Raises:
            UnsupportedModelError: the operations of its layers do not follow from their sizes.
        """
        parts = family.parts
        model: Any = parts.head if parts.head is not None else parts.base
        table = model.get_output_embeddings()
        layers = tuple(_layer(family, number) for number in range(len(parts.layers)))
        before, behind = _beside(family, table)
        head = 0 if table is None else 2 * table.weight.numel()
        return cls(family.name, layers, before, behind, head, "logits_to_keep" not in parameters(model))


def _beside(family: Family, table: nn.Module | None) -> tuple[int, int]:
    """Operations for one token before and behind the layers."""
    found, parts = [0, 0], family.parts
    inside = {id(module) for module in parts.layers.modules()}
    for name, module in parts.text.named_modules():
        if isinstance(module, nn.Linear) and id(module) not in inside and module is not table and _textual(name):
            found["unembed" in name] += 2 * module.weight.numel()
    return found[0], found[1]


def _textual(name: str) -> bool:
    """Not so what joins images inside a language model."""
    return not any(word in name for word in ("vision", "image", "audio", "vq", "extend"))


def _layer(family: Family, number: int) -> Layer:
    layer, facts = family.parts.layers[number], family.layers[number]
    linear = sum(_operations(layer, shares_keys=facts.source != number))
    if facts.kind == "linear":
        return Layer(linear, 0, chunk=_delta_rule(layer, family.name))
    attention: Any = family.layer_attention(number)
    last: Any = next(
        (found for name in OUTPUTS if isinstance(found := getattr(attention, name, None), nn.Module)), None
    )
    if last is None:
        raise UnsupportedModelError(
            f"The operations of '{family.name}' cannot be counted: {type(attention).__name__} has no output projection "
            f"(one of {', '.join(OUTPUTS)}) from which the size of its heads would follow."
        )
    values = int(last.weight.shape[1])
    wide = getattr(attention, "qk_head_dim", None)  # queries and keys may be wider than values
    queries = values if wide is None else attention.num_heads * wide
    latent = getattr(attention, "kv_b_proj", None)
    expand = 0 if latent is None else 2 * latent.weight.numel()
    last_only = facts.source != number and "logits_to_keep" in parameters(family.parts.text)
    return Layer(linear, 2 * (queries + values), expand, last_only=last_only)


def _delta_rule(layer: nn.Module, name: str) -> int:
    """Operations of a chunk in a layer with a gated delta rule, without its triangular solve; 0 for convolutions."""
    for module in layer.modules():
        heads, k, v = (getattr(module, size, None) for size in ("num_v_heads", "head_k_dim", "head_v_dim"))
        if heads and k and v:
            return int(2 * heads * CHUNK * (2 * CHUNK * k + CHUNK * v + 3 * k * v))
    if any(hasattr(module, "A_log") for module in layer.modules()):
        raise UnsupportedModelError(
            f"The operations of '{name}' cannot be counted: the recurrent layers ({type(layer).__name__}) follow "
            "another rule than the gated delta rule."
        )
    return 0


def _operations(layer: nn.Module, shares_keys: bool) -> Iterator[int]:
    """Operations of every module of a layer for one token."""
    _refuse_two_kinds(layer)
    attention = attention_of(layer)
    unused = [getattr(attention, name, None) for name in ("k_proj", "v_proj")] if shares_keys else []
    for module in layer.modules():
        if any(module is one for one in unused):
            continue
        if isinstance(module, nn.Linear | nn.Conv1d):
            yield 2 * module.weight.numel()
        else:
            yield sum(_own(module, layer))
        if hasattr(module, "prediction_coefs"):  # alternating updates: two routings, a mix of the streams
            router: Any = module.modality_router
            streams, width = router.weight.shape
            yield 2 * streams * width + 2 * streams**2 * width


def _refuse_two_kinds(layer: nn.Module) -> None:
    """Text and images may have experts of their own, of different sizes."""
    sizes = {
        tuple(weight.shape) for name, weight in layer.named_parameters() if weight.dim() == 3 and "gate_up_proj" in name
    }
    if len(sizes) > 1:
        raise UnsupportedModelError(
            f"The operations of {type(layer).__name__} cannot be counted: text and images have experts of different "
            "sizes, so they depend on which token is which."
        )


def _own(module: nn.Module, layer: nn.Module) -> Iterator[int]:
    """Operations of the matrices that a module holds itself: routers and experts."""
    for weight in module.parameters(recurse=False):
        if weight.dim() == 2:
            yield 2 * weight.numel()
        elif weight.dim() == 3:  # experts
            every = type(module).__name__ in EVERY_EXPERT
            visited = weight.shape[0] if every else _visited(layer)
            yield 2 * weight[0].numel() * visited


def _visited(layer: nn.Module) -> int:
    """Experts that a token visits."""
    for module in layer.modules():
        for name in ("top_k", "num_experts_per_tok"):
            if isinstance(found := getattr(module, name, None), int):
                return found
    raise UnsupportedModelError(
        f"The operations of {type(layer).__name__} cannot be counted: it does not say how many experts a token visits."
    )
