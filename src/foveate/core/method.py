"""What a pruning method is: where it selects, what it must be able to read there, and how it chooses."""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from foveate.core.budget import Keep, Per
from foveate.core.probe import Probe
from foveate.core.selection import Selection
from foveate.core.view import ModelInfo, Tap, View
from foveate.errors import ConfigurationError

BEFORE_LLM = 0
"""Stage layer of the before-LLM seam: tokens dropped here enter no decoder layer."""

Choice = Selection | Tensor
"""What a method returns: a Selection, sorted indices `[m]` (int64) or a boolean mask `[n]`."""

Positions = Literal["original", "contiguous", "index"]
"""`"original"` keeps the position ids. The other two exist to reproduce published code: `"contiguous"` renumbers the
survivors 0.., `"index"` numbers them by their place in the sequence that enters a stage (before its drop)."""

Reads = Literal["nothing", "keys", "attention"]
"""What a method reads in the layer before a stage: `View.keys`, or `View.attention` (and keys)."""


@dataclass(frozen=True)
class Stage:
    """One point at which a method selects.

    Attributes:
        layer: 0 is before the language model, k >= 1 before decoder layer k (0-based: layers k, k+1, ... see
            the survivors only). With `compact_earlier` it may be the number of layers: then all layers read
            everything and only the KV cache is pruned.
        reads: what `choose` reads of the decoder layer before; nothing else of it is held.
        compact_earlier: also remove the dropped tokens from the KV caches of layers 0..k-1.
        positions: of the survivors; None: the method's.
    """

    layer: int
    reads: Reads = "nothing"
    compact_earlier: bool = False
    positions: Positions | None = None


@dataclass(frozen=True)
class Method(ABC):
    """Base of all methods. Subclass as a frozen dataclass: its fields are its configuration.

    A method says where it selects (`stages`), which share of an image's tokens is alive after each stage (`shares`; one
    stage needs no answer) and which tokens these are (`choose`).

    Class attributes:
        name: key in the registry, derived from the class name unless given.
        paper: where it is published.
        verified: by what the implementation was verified, or None.

    Args:
        keep: average number of visual tokens per decoder layer over the unpruned number, as a ratio in (0, 1]; or that
            average number itself, as a count; or a `Keep`. It always means the average, wherever a method prunes.
        positions: position ids of the survivors; papers' code for LLaVA renumbers them (`"contiguous"`).
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    verified: ClassVar[str | None] = None

    keep: Keep | float | int = 1 / 9
    positions: Positions = field(default="original", kw_only=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z]*[a-z])", "_", cls.__name__).lower()

    def __post_init__(self) -> None:
        if self.positions not in ("original", "contiguous", "index"):
            raise ConfigurationError(
                f"{self.name}: positions={self.positions!r} must be original, contiguous or index."
            )
        object.__setattr__(self, "keep", Keep.of(self.keep))

    # -- what a subclass says ----------------------------------------------------------------------------

    def stages(self, info: ModelInfo) -> Sequence[Stage]:
        """Where this method selects on such a model, in increasing order of layer; by default before the model.

        Raises:
            ConfigurationError: if the configuration does not fit the model.
        """
        return (Stage(BEFORE_LLM),)

    def shares(self, info: ModelInfo, keep: float) -> Sequence[float]:
        """Share of an image's tokens alive after each stage, so that the average over all layers is `keep`.

        Raises:
            ConfigurationError: if the average cannot be met on such a model.
        """
        (stage,) = self.stages(info)
        share = (keep * info.layers - stage.layer) / max(info.layers - stage.layer, 1)
        if share <= 0:
            raise ConfigurationError(
                f"{self.name} prunes before layer {stage.layer} of {info.layers}, so it keeps more than "
                f"{stage.layer / info.layers:.3g} on average; {keep:.3g} cannot be reached. Raise keep or prune earlier."
            )
        return (share,)

    def taps(self, info: ModelInfo) -> Sequence[Tap]:
        """What this method reads in the vision tower; only these taps are installed."""
        return ()

    def probe(self, info: ModelInfo) -> Probe | None:
        """Tokens to append behind the prompt; they are removed at the method's last stage."""
        return None

    @abstractmethod
    def choose(self, view: View, count: int) -> Choice:
        """Choose `count` of the view's tokens, fewer than there are; called once per image (or prompt) and stage."""

    # -- what a runtime asks -----------------------------------------------------------------------------

    @property
    def budget(self) -> Keep:
        """`keep` with its kind."""
        return Keep.of(self.keep)

    @property
    def per(self) -> Per:
        """Whether a `View` holds one image or all images of a prompt."""
        return self.budget.per

    @property
    def prunes(self) -> bool:
        """Whether anything can ever be dropped; if not, no stage, tap or probe is installed."""
        return not self.budget.is_everything

    @property
    def decode_from_cache(self) -> bool:
        """Decode at the positions that follow the *pruned* prompt, as published code does that renumbers; else decoding
        continues after the original positions."""
        return self.positions != "original"

    def counts(self, info: ModelInfo, total: int) -> Sequence[int]:
        """Tokens of an image of `total` tokens alive after each stage.

        Raises:
            ConfigurationError: if the average cannot be met for an image of this size.
        """
        budget = self.budget
        shares = self.shares(info, budget.ratio_of(total))
        return [budget.share(min(1.0, share)).size(total) for share in shares]

    def check(self, info: ModelInfo) -> None:
        """Raise before a prefill what would be raised in the middle of it.

        Raises:
            ConfigurationError: the budget cannot be met on such a model.
        """
        if self.budget.ratio is not None:
            self.shares(info, self.budget.ratio)

    def select(self, view: View) -> Choice:
        """The choice at `view.layer`. Override it only where the number depends on what is seen."""
        layers = [stage.layer for stage in self.stages(view.info)]
        count = self.counts(view.info, view.total)[layers.index(view.layer)]
        if count >= len(view):
            return Selection.everything(len(view), view.device)
        return self.choose(view, count)

    def parameters(self) -> dict[str, Any]:
        """The configuration as plain values, for traces and tables."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if "keep" in found and isinstance(found["keep"], Keep):
            found["keep"] = found["keep"].plain
        return {name: value for name, value in found.items() if not (name == "positions" and value == "original")}

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.parameters().items())})"


@dataclass(frozen=True)
class Score(Method):
    """A method that gives one number per visual token; its `Keep` does the rest, a threshold included.

    Subclasses define `score(view) -> [n]`, higher is better.
    """

    def choose(self, view: View, count: int) -> Choice:
        return Keep(count=count).choose(self.score(view))

    def select(self, view: View) -> Choice:
        if self.budget.threshold is not None:
            return self.budget.choose(self.score(view))
        return super().select(view)

    @abstractmethod
    def score(self, view: View) -> Tensor:
        """Importance of each token, `[n]`, higher is better."""
