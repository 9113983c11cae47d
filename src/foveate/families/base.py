"""What the engine must know of a model family. Adapters in `families/` are data more than code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from foveate.core.grid import Grid
from foveate.core.view import ModelInfo, Tap
from foveate.errors import MissingTapError, UnsupportedModelError


@dataclass(frozen=True)
class Parts:
    """The modules that hooks go to.

    Attributes:
        base: receives `input_ids` and joins text and images (the model without its LM head).
        tower: vision tower; called once per kind of visual input.
        blocks: its transformer blocks.
        text: language model without head; called with keyword arguments.
        layers: its decoder layers.
        head: the model with its LM head, None if the base model was given alone.
    """

    base: nn.Module
    tower: nn.Module
    blocks: nn.ModuleList
    text: nn.Module
    layers: nn.ModuleList
    head: nn.Module | None


class Family(ABC):
    """Adapter of one model family; one instance serves one model.

    Subclass in a file of `foveate/families/`; the registry finds it. `model_types` are the values of
    `config.model_type` it serves; paths name modules relative to the base model.
    """

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    tower_path: ClassVar[str]
    blocks_path: ClassVar[str]
    text_path: ClassVar[str] = "language_model"
    has_class_token: ClassVar[bool] = False
    wants_token_types: ClassVar[bool] = False
    """Whether the model needs `mm_token_type_ids` (M-RoPE) from the processor."""
    default_template: ClassVar[str | None] = None
    """Chat template for checkpoints that come without one."""

    def __init__(self, model: nn.Module) -> None:
        self.config: Any = model.config
        base = getattr(model, "model", model)  # accepts the base model as well as the one with a head
        base = base if _has(base, self.text_path) else model
        self.parts = Parts(
            base=base,
            tower=self._part(base, self.tower_path, nn.Module),
            blocks=self._part(base, f"{self.tower_path}.{self.blocks_path}", nn.ModuleList),
            text=self._part(base, self.text_path, nn.Module),
            layers=self._part(base, f"{self.text_path}.layers", nn.ModuleList),
            head=None if base is model else model,
        )

    def _part(self, root: nn.Module, path: str, kind: type) -> Any:
        part: Any = root
        for step in path.split("."):
            part = getattr(part, step, None)
        if not isinstance(part, kind):
            raise UnsupportedModelError(
                f"{type(root).__name__} has no `{path}` ({kind.__name__}), which the family adapter "
                f"'{self.name}' expects; pass the stock transformers model of type {self.model_types}."
            )
        return part

    @property
    def tower_heads(self) -> int:
        """Attention heads of a vision block, 0 if its configuration does not say."""
        vision = getattr(self.config, "vision_config", None)
        return getattr(vision, "num_attention_heads", None) or getattr(vision, "num_heads", None) or 0

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(
            self.name, len(self.parts.layers), len(self.parts.blocks), self.has_class_token, self.tower_heads
        )

    @property
    @abstractmethod
    def token_ids(self) -> dict[str, int]:
        """Placeholder token id per modality (`image`, `video`), in the order in which features are joined."""

    @abstractmethod
    def tower_grids(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Grid]:
        """Merged grids of the images in one call of the tower."""

    @abstractmethod
    def incoming(self, kwargs: dict[str, Any]) -> dict[str, list[Grid]]:
        """Merged grids per modality of the raw images that a call of the base model brings."""

    @abstractmethod
    def take(self, kwargs: dict[str, Any], chosen: dict[str, list[int]]) -> dict[str, Any]:
        """The raw-image arguments of such a call with only the chosen images of each modality."""

    @abstractmethod
    def without_images(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of such a call with no images at all."""

    # -- reading -----------------------------------------------------------------------------------------

    @abstractmethod
    def block_of(self, tap: Tap) -> int:
        """Index of the vision block that a tap reads (resolves None and negative numbers)."""

    @abstractmethod
    def block_attention(self, block: nn.Module) -> nn.Module:
        """The module of a vision block that calls the attention function."""

    @abstractmethod
    def key_features(self, block: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
        """The module of a vision block whose output holds its keys before rotary embedding, and how to take them out,
        heads concatenated."""

    @abstractmethod
    def to_tokens(self, tap: Tap, values: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        """Values per patch, as the tower orders them, as values per visual token in raster order, a tensor per image.

        Args:
            values: `[B, S]` (received) or the tower's own shape with features last (keys, hidden).
        """

    def layer_attention(self, layer: int) -> nn.Module:
        """The module of a decoder layer that calls the attention function."""
        module: Any = self.parts.layers[layer]
        return module.self_attn

    def rotary(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary embeddings (cos, sin) of text positions `[B, n]`."""
        module: Any = self.parts.text.rotary_emb
        return module(hidden, positions)

    def resolve_block(self, tap: Tap, default: int) -> int:
        blocks = len(self.parts.blocks)
        block = default if tap.block is None else tap.block
        if not -blocks <= block < blocks:
            raise MissingTapError(
                f"{tap} asks for vision block {block}, but the tower of '{self.name}' has {blocks} blocks."
            )
        return block % blocks


def _has(root: nn.Module, path: str) -> bool:
    part: Any = root
    for step in path.split("."):
        part = getattr(part, step, None)
    return isinstance(part, nn.Module)
