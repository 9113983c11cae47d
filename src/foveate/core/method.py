"""What a pruning method is: where it selects, what it must be able to read there, and how it chooses."""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

from foveate.core.budget import Keep, Per
from foveate.core.selection import Selection

if TYPE_CHECKING:
    from foveate.core.probe import Probe
    from foveate.core.view import View
    from foveate.engine.layout import Layout
    from foveate.engine.masks import Later

BEFORE_LLM = 0
"""Stage layer of the before-LLM seam: tokens dropped here enter no decoder layer."""

Choice = Selection | Tensor
"""What a method returns: a Selection, sorted indices `[m]` (int64) or a boolean mask `[n]`."""


@dataclass(frozen=True)
class Tap:
    """Something to read in the vision tower; a value per visual token that enters the language model.

    Attributes:
        kind: `"received"`: attention that a token receives (from the class token if the tower has one, else
            from all tokens of its image), summed over heads, `[N]`. `"keys"`: key features before rotary
            embedding, heads concatenated, `[N, D]`. `"hidden"`: output of a block, `[N, D]`.
        block: index of the vision block; negative counts from the end. None lets the family choose its
            best block for the purpose (last block with global attention that feeds the projector).
    """

    kind: Literal["received", "keys", "hidden"]
    block: int | None = None


@dataclass(frozen=True)
class Stage:
    """One point at which a method selects.

    Attributes:
        layer: 0 is before the language model, k >= 1 before decoder layer k (0-based: layers k, k+1, ... see
            the survivors only). With `compact_earlier` it may be the number of layers: then all layers read
            everything and only the KV cache is pruned.
        queries: whether `View.attention` will be called, so that layer k-1's input must be held.
        compact_earlier: also remove the dropped tokens from the KV caches of layers 0..k-1.
        positions: `"original"` keeps the position ids; the other two exist to reproduce published code:
            `"contiguous"` renumbers the survivors 0.., `"index"` numbers them by their place in the sequence
            that enters this stage (before its drop).
    """

    layer: int
    queries: bool = False
    compact_earlier: bool = False
    positions: Literal["original", "contiguous", "index"] = "original"


@dataclass(frozen=True)
class ModelInfo:
    """What a method may know of the model before it sees an input.

    Attributes:
        family: name of the family adapter.
        layers: number of decoder layers.
        tower_blocks: number of vision blocks.
        has_class_token: whether `Tap("received")` is the class token's attention.
    """

    family: str
    layers: int
    tower_blocks: int
    has_class_token: bool


class Method(ABC):
    """Base of all methods. Subclass as a frozen dataclass: its fields are its configuration.

    Class attributes:
        name: key in the registry, derived from the class name unless given.
        paper: where it is published.
        verified: by what the implementation was verified, or None.
        per: whether a `View` holds one image (the default) or all images of a prompt.
        decode_from_cache: decode at the positions that follow the *pruned* prompt (only to reproduce
            published code that does so); otherwise decoding continues after the original positions.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    verified: ClassVar[str | None] = None
    per: Per = "image"
    decode_from_cache: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z]*[a-z])", "_", cls.__name__).lower()

    @abstractmethod
    def stages(self, info: ModelInfo) -> Sequence[Stage]:
        """Where this method selects on such a model, in increasing order of layer.

        Raises:
            ConfigurationError: if the configuration does not fit the model.
        """

    def taps(self, info: ModelInfo) -> Sequence[Tap]:
        """What this method reads in the vision tower; only these taps are installed."""
        return ()

    def probe(self, info: ModelInfo) -> Probe | None:
        """Tokens to append behind the prompt; they are removed at the method's last stage."""
        return None

    def later(self, layout: Layout, layer: int) -> Later | None:
        """What tokens behind the prompt must not see in `layer` (only when a completion runs along, for training)."""
        return None

    @abstractmethod
    def select(self, stage: Stage, view: View) -> Choice:
        """Choose among the tokens of one view; called once per image (or prompt) and stage."""

    def parameters(self) -> dict[str, Any]:
        """The configuration as plain values, for traces and tables."""
        if not dataclasses.is_dataclass(self):
            return {}
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.parameters().items())})"


@dataclass(frozen=True)
class Score(Method):
    """A method that gives one number per visual token at one stage; `Keep` does the rest.

    Subclasses define `score(view) -> [n]`, higher is better, and may override `stages` and `taps`.

    Args:
        keep: budget at that stage (ratio, count or `Keep`).
        layer: stage layer, 0 = before the language model.
    """

    keep: Keep | float | int = 1 / 9
    layer: int = BEFORE_LLM

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", Keep.of(self.keep))
        object.__setattr__(self, "per", self.budget.per)

    @property
    def budget(self) -> Keep:
        return Keep.of(self.keep)

    def stages(self, info: ModelInfo) -> Sequence[Stage]:
        return (Stage(self.layer),)

    def select(self, stage: Stage, view: View) -> Choice:
        if self.budget.is_everything:
            return Selection.everything(len(view), view.device)
        return self.budget.choose(self.score(view))

    @abstractmethod
    def score(self, view: View) -> Tensor:
        """Importance of each token, `[n]`, higher is better."""
