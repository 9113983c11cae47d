"""Finding the parts of a stock model by its structure: which module joins, which reads images, which decodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from foveate.errors import UnsupportedModelError
from foveate.families.refusals import layer_refusal, type_refusal

TOWERS = ("vision_tower", "vision_model", "visual", "image_tower", "vision_encoder", "embed_vision")
"""Names that transformers gives to a vision tower beside the language model, or to what stands in its place."""

JOINTS = (*TOWERS, "vision_embed_tokens", "vqmodel", "embed_tokens_extend")
"""What else marks the module that joins images and text."""

BLOCKS = ("layers", "blocks", "layer", "encoder_layers", "resblocks")
ATTENTIONS = ("self_attn", "attn", "attention", "self_attention")

Kind = Literal["full", "sliding", "chunked", "linear"]


@dataclass(frozen=True)
class Parts:
    """The modules that hooks go to.

    Attributes:
        base: receives `input_ids` and joins text and images (the model without its LM head).
        tower: vision tower; called once or more per kind of visual input. None: images enter without one.
        blocks: its transformer blocks; empty without a tower.
        text: language model without head; may be the base itself.
        layers: its decoder layers.
        head: the model with its LM head, None if the base model was given alone.
        twins: further towers of the same structure (for videos), with their blocks.
    """

    base: nn.Module
    tower: nn.Module | None
    blocks: nn.ModuleList
    text: nn.Module
    layers: nn.ModuleList
    head: nn.Module | None
    twins: tuple[tuple[nn.Module, nn.ModuleList], ...] = ()

    @property
    def towers(self) -> tuple[tuple[nn.Module, nn.ModuleList], ...]:
        """All towers with their blocks."""
        return () if self.tower is None else ((self.tower, self.blocks), *self.twins)


@dataclass(frozen=True)
class LayerFacts:
    """What one decoder layer does with the tokens before.

    Attributes:
        kind: `"linear"` stands for every layer without keys per token (recurrent, convolutional, MLP only).
        source: the layer whose keys it reads; another one where layers share keys and values.
    """

    kind: Kind
    source: int


def find_parts(model: nn.Module) -> Parts:
    """The parts of a model whose images become tokens of a decoder.

    Raises:
        UnsupportedModelError: a part is missing, or images enter in another way; the message says which.
    """
    if reason := type_refusal(model.config):
        raise UnsupportedModelError(f"{type(model).__name__}: {reason}")
    text = _text(model)
    if reason := layer_refusal(text.layers):  # type: ignore[arg-type]
        raise UnsupportedModelError(f"{type(model).__name__}: {reason}")
    base = _base(model, text)
    tower = next((found for name in TOWERS if isinstance(found := getattr(base, name, None), nn.Module)), None)
    layers: Any = text.layers
    twin = getattr(base, "video_tower", None)
    twins = ((twin, _blocks(twin)),) if isinstance(twin, nn.Module) and twin is not tower else ()
    return Parts(base, tower, _blocks(tower), text, layers, None if base is model else model, twins)


def _text(model: nn.Module) -> nn.Module:
    get_decoder: Any = getattr(model, "get_decoder", None)
    decoder = model if get_decoder is None else get_decoder()
    for module in decoder.modules():
        layers = getattr(module, "layers", None)
        if isinstance(layers, nn.ModuleList) and len(layers):
            return module
    raise UnsupportedModelError(
        f"{type(model).__name__}: no decoder was found (a module with a list `layers` below `get_decoder()`), so there "
        "is no language model whose tokens could be dropped."
    )


def _base(model: nn.Module, text: nn.Module) -> nn.Module:
    """The deepest module on the way to the language model that owns something which reads images."""
    found = None
    for module in _path(model, text):
        if any(isinstance(getattr(module, name, None), nn.Module) for name in JOINTS):
            found = module
    if found is None:
        raise UnsupportedModelError(
            f"{type(model).__name__}: no vision tower was found beside the language model (a module named "
            f"{', '.join(JOINTS)}); if this model reads images, write an adapter (see foveate/families/)."
        )
    return found


def _path(model: nn.Module, text: nn.Module) -> Iterator[nn.Module]:
    path = next(name for name, module in model.named_modules() if module is text)
    yield model
    at: Any = model
    for step in path.split(".") if path else ():
        at = getattr(at, step)
        yield at


def _blocks(tower: nn.Module | None) -> nn.ModuleList:
    if tower is None:
        return nn.ModuleList()
    lists = [
        module
        for name, module in tower.named_modules()
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in BLOCKS and len(module)
    ]
    return max(lists, key=len, default=nn.ModuleList())


def layer_facts(text: nn.Module) -> tuple[LayerFacts, ...]:
    """Kinds and key sources of all decoder layers, from the configuration and the modules."""
    layers: Any = text.layers
    kinds = [_kind(layer, named) for layer, named in zip(layers, _named_kinds(text), strict=True)]
    sources = list(range(len(kinds)))
    for i, layer in enumerate(layers):
        if getattr(attention_of(layer), "is_kv_shared_layer", False):
            own = [j for j in range(i) if sources[j] == j and kinds[j] == kinds[i] and not _shares(layers[j])]
            sources[i] = own[-1]
    return tuple(LayerFacts(kind, source) for kind, source in zip(kinds, sources, strict=True))


def _shares(layer: nn.Module) -> bool:
    return bool(getattr(attention_of(layer), "is_kv_shared_layer", False))


def _named_kinds(text: nn.Module) -> list[str]:
    config: Any = text.config
    layers: Any = text.layers
    named = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if named is None:
        windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
        named = ["sliding_attention" if windowed else "full_attention"] * len(layers)
    return list(named)[: len(layers)]


def _kind(layer: nn.Module, named: str) -> Kind:
    if "sliding" in named:
        return "sliding"
    if "chunk" in named:
        return "chunked"
    if attention_of(layer) is None or any(word in named for word in ("linear", "conv", "mamba", "recurrent", "mlp")):
        return "linear"
    return "full"


def attention_of(block: nn.Module) -> nn.Module | None:
    """The module of a block that calls the attention function: the one with projections and a configuration."""
    named = [found for name in ATTENTIONS if isinstance(found := getattr(block, name, None), nn.Module)]
    for start in named or [block]:
        for module in start.modules():
            if module is not block and _projections(module) and hasattr(module, "config"):
                return module
    return named[0] if named else None


def _projections(module: nn.Module) -> bool:
    return any(isinstance(getattr(module, name, None), nn.Module) for name in ("q_proj", "qkv", "q_a_proj", "wqkv"))
