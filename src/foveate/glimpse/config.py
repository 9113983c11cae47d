"""What a trained glimpse module is for: its base model's sizes, the layers it reads, the sizes of its VIP."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from foveate.errors import ConfigurationError, UnsupportedModelError

_SEQUENCES = ("selected_layers", "le_layers", "selected_visual_layers", "anchors")


def check_spread(spread: float | None, portion: float) -> None:
    """Refuse what `GlimpsePrune` cannot choose by.

    Raises:
        ConfigurationError: saying what it takes.
    """
    if spread is not None and not 0 <= spread < math.inf:
        raise ConfigurationError(f"spread={spread} must be a number from 0 on; leave it out for none.")
    if not 0 < portion <= 1:
        raise ConfigurationError(f"portion={portion} must lie in (0, 1].")
    if portion < 1 and spread is None:
        raise ConfigurationError(f"portion={portion} is of a spread, and there is none; give spread=3, for example.")


def default_layer(layers: int) -> int:
    """K of a model with so many decoder layers, counted from 0: 18 of 28, 23 of 36, 21 of 32, 26 of 40."""
    return math.ceil(2 * layers / 3) - 1


def readable_layer(text: Any, layer: int) -> int:
    """The nearest layer, not behind `layer` if that can be, that sees all tokens through keys of its own.

    Args:
        text: configuration of the language model.
    """
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    own = text.num_hidden_layers - (getattr(text, "num_kv_shared_layers", None) or 0)
    found = [i for i, kind in enumerate(kinds[:own]) if kind in ("full_attention", "attention")]
    if not found:
        return layer
    return max((i for i in found if i <= layer), default=found[0])


@dataclass(frozen=True, kw_only=True)
class GlimpseConfig:
    """Configuration of a `GlimpseModule`; layer indices count from 0.

    Attributes:
        base_model: id or path of the model the module was made for (information only).
        family: `model_type` of that model.
        hidden_size, num_attention_heads, num_hidden_layers, rms_norm_eps: of its language model.
        vision_hidden_size: width of the vision tower's hidden states.
        selected_layers: S, where the glimpse token's attention is read.
        reduce_layer: K >= max(S); pruning happens after this layer.
        le_layers: layers before which a glimpse vector is added to the glimpse token; contains 0.
        le_length: number of glimpse tokens; the last one's attention is read.
        le_dropout: dropout on the glimpse vectors in training.
        selected_visual_layers: tapped vision layers, deepest first; Qwen2.5-VL counts blocks from 0, LLaVA
            counts Hugging Face `hidden_states` (0 = embeddings, v = output of the v-th block).
        use_attention_logits: read raw logits `q.k / sqrt(d)`; else log-probabilities over all keys.
        threshold, max_keep, min_keep, background, anchors: defaults of the pruning decision (probability, fraction,
            count, fraction, corner names).
        spread, portion: the same of how tokens and background are chosen together, see `GlimpsePrune`.
        vip_width, vip_cond_width, vip_heads, vip_act: f, c, heads and activation of the VIP.
        vip_window: side of the VIP's attention windows in visual tokens; None: attention within an image.
        deep_supervision, raw_attention: further output rows of the VIP, see `VIP`.

    Raises:
        ConfigurationError: the values contradict each other.
    """

    family: str
    hidden_size: int
    num_attention_heads: int
    num_hidden_layers: int
    vision_hidden_size: int
    selected_layers: tuple[int, ...]
    reduce_layer: int
    le_layers: tuple[int, ...]
    selected_visual_layers: tuple[int, ...]
    use_attention_logits: bool
    base_model: str = ""
    rms_norm_eps: float = 1e-6
    le_length: int = 1
    le_dropout: float = 0.1
    threshold: float = 0.5
    max_keep: float | None = None
    min_keep: int = 1
    background: float = 0.0
    spread: float | None = None
    portion: float = 1.0
    anchors: tuple[str, ...] = ()
    vip_width: int = 256
    vip_cond_width: int = 512
    vip_heads: int = 4
    vip_act: str = "silu"
    vip_window: int | None = None
    deep_supervision: bool = False
    raw_attention: bool = False

    def __post_init__(self) -> None:
        for name in _SEQUENCES:  # JSON has lists
            value = getattr(self, name)
            if not isinstance(value, list | tuple | range):
                raise ConfigurationError(f"{name}={value!r} must be a list, for example [{value!r}]")
            object.__setattr__(self, name, tuple(value))
        for field in fields(self):
            check_kind(field.name, getattr(self, field.name), str(field.type))
        if self.max_keep is not None:  # a share: a JSON writer may have made 1 of 1.0, which is not one token
            object.__setattr__(self, "max_keep", float(self.max_keep))
        object.__setattr__(self, "background", float(self.background))
        object.__setattr__(self, "portion", float(self.portion))
        self._check_layers()
        width = self.vip_width + self.vip_cond_width
        if self.vip_width % self.vip_heads or width % (4 * self.vip_heads):
            raise ConfigurationError(
                f"VIP sizes do not fit together: vip_width={self.vip_width} must divide by vip_heads="
                f"{self.vip_heads}, and vip_width + vip_cond_width={width} by 4 * vip_heads"
            )
        if not 0 <= self.threshold <= 1:
            raise ConfigurationError(f"threshold={self.threshold} is not a probability; use a value in [0, 1]")
        if not 0 <= self.background <= 1:
            raise ConfigurationError(f"background={self.background} is not a share; use a value in [0, 1]")
        check_spread(self.spread, self.portion)

    def _check_layers(self) -> None:
        if not self.selected_layers or not self.selected_visual_layers:
            raise ConfigurationError("selected_layers and selected_visual_layers must name at least one layer")
        if min(self.vision_blocks) < 0:
            raise ConfigurationError(
                f"selected_visual_layers={list(self.selected_visual_layers)} must not be negative"
                + (" and not 0: LLaVA's count starts after the embeddings" if self.family == "llava" else "")
            )
        last = self.num_hidden_layers - 1
        if not 0 <= self.reduce_layer <= last:
            raise ConfigurationError(f"reduce_layer={self.reduce_layer}: the model has layers 0..{last}")
        if not 0 <= min(self.le_layers, default=0) <= max(self.le_layers, default=0) <= last:
            raise ConfigurationError(f"le_layers={list(self.le_layers)}: the model has layers 0..{last}")
        if not 0 <= min(self.selected_layers) <= max(self.selected_layers) <= min(last, self.reduce_layer):
            raise ConfigurationError(
                f"selected_layers={list(self.selected_layers)} must lie in "
                f"0..{min(last, self.reduce_layer)}: "
                f"the model has {self.num_hidden_layers} layers and pruning follows layer {self.reduce_layer}"
            )
        if 0 not in self.le_layers or len(set(self.le_layers)) != len(self.le_layers):
            raise ConfigurationError(f"le_layers={list(self.le_layers)} must contain 0 and no layer twice")
        if self.le_length < 1:
            raise ConfigurationError(f"le_length={self.le_length}: at least one glimpse token is needed")

    @property
    def vision_blocks(self) -> tuple[int, ...]:
        """Vision blocks (from 0) whose outputs are the VIP's conditions, in the order of its layers."""
        shift = 1 if self.family == "llava" else 0
        return tuple(v - shift for v in self.selected_visual_layers)

    @classmethod
    def for_model(cls, model_config: Any, **overrides: Any) -> GlimpseConfig:
        """The published settings, scaled to a model. `overrides` replace single fields.

        Layers: attention is read and pruning happens at layer `ceil(2L/3) - 1` of L (18 of 28, 23 of 36, 21
        of 32, 26 of 40), glimpse vectors at all layers, vision layers at 4/4, 3/4, 2/4 and 1/4 of the tower.
        VIP: width 256, an eighth of the hidden size (a multiple of 16) for models narrower than 2048;
        conditions are twice as wide.

        Raises:
            UnsupportedModelError: a model without a vision transformer.
            ConfigurationError: an unknown field, or values that contradict each other.
        """
        fields = _published(model_config)
        if unknown := overrides.keys() - cls.__dataclass_fields__.keys():
            raise ConfigurationError(
                f"GlimpseConfig has no {', '.join(sorted(unknown))}; it has {', '.join(cls.__dataclass_fields__)}"
            )
        return cls(**{**fields, **overrides})


def _published(model_config: Any) -> dict[str, Any]:
    """The published settings, scaled to a model."""
    family = model_config.model_type
    text: Any = getattr(model_config, "text_config", None) or model_config.get_text_config()
    vision: Any = getattr(model_config, "vision_config", None)
    depth = getattr(vision, "depth", None) or getattr(vision, "num_hidden_layers", None)
    if not depth:
        raise UnsupportedModelError(
            f"GlimpsePrune reads vision blocks, but the configuration of '{family}' names none (vision_config)."
        )
    lowest = 1 if family == "llava" else 0
    layer = readable_layer(text, default_layer(text.num_hidden_layers))
    width = min(256, max(32, text.hidden_size // 8 // 16 * 16))
    return {
        "family": family,
        "base_model": getattr(model_config, "_name_or_path", ""),
        "hidden_size": text.hidden_size,
        "num_attention_heads": text.num_attention_heads,
        "num_hidden_layers": text.num_hidden_layers,
        "rms_norm_eps": getattr(text, "rms_norm_eps", 1e-6),
        "use_attention_logits": family != "llava",
        "vision_hidden_size": getattr(vision, "embed_dim", None) or vision.hidden_size,
        "selected_layers": (layer,),
        "reduce_layer": layer,
        "le_layers": range(text.num_hidden_layers),
        "selected_visual_layers": sorted({max(lowest, depth * i // 4 - 1) for i in (1, 2, 3, 4)}, reverse=True),
        "vip_width": width,
        "vip_cond_width": 2 * width,
    }


_KINDS: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "str": (str, "text"),
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "bool": (bool, "true or false"),
}


def check_kind(name: str, value: Any, annotation: str) -> None:
    """Refuse a value of another kind than a field is annotated with.

    Raises:
        ConfigurationError: naming the field and what it takes.
    """
    if annotation.endswith(" | None"):
        if value is None:
            return
        annotation = annotation.removesuffix(" | None")
    many = annotation.startswith("tuple[")
    kind, words = _KINDS[annotation.removeprefix("tuple[").removesuffix(", ...]")]
    for one in value if many else (value,):
        if not isinstance(one, kind) or (isinstance(one, bool) and kind is not bool) or one != one:
            raise ConfigurationError(f"{name}={value!r}: expected {'a list of which each is ' if many else ''}{words}")
