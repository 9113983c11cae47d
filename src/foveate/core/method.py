"""What a pruning method is: where it selects, what it must be able to read there, and how it chooses."""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from foveate.core.budget import Keep, Per, part
from foveate.core.frames import by_frame
from foveate.core.probe import Probe
from foveate.core.selection import Choice, Selection
from foveate.core.tower import TowerStage, TowerView
from foveate.core.view import ModelInfo, Tap, View
from foveate.errors import ConfigurationError

BEFORE_LLM = 0
"""Stage layer of the before-LLM seam: tokens dropped here enter no decoder layer."""

Positions = Literal["original", "contiguous", "index"]
"""`"original"` keeps the position ids. The other two exist to reproduce published code: `"contiguous"` renumbers the
survivors 0.., `"index"` numbers them by their place in the sequence that enters a stage (before its drop)."""

Reads = Literal["nothing", "keys", "attention"]
"""What a method reads in the layer before a stage: `View.keys`, or `View.attention` (and keys)."""


_USUAL = {"positions": "original", "proportional": None}
"""What traces and tables do not mention."""


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


@dataclass(frozen=True, eq=False)  # else a subclass that wants identity would inherit an equality of `keep` alone
class Method:
    """Base of all methods. Subclass as a frozen dataclass: its fields are its configuration.

    A method says where it selects (`stages`), which share of an image's tokens is alive after each stage (`shares`; one
    stage needs no answer) and which tokens these are (`choose`).

    Class attributes:
        name: key in the registry, derived from the class name unless given.
        paper: where it is published.
        verified: by what the implementation was verified, or None.
        adaptive: whether the number kept can depend on what is seen, other than by a threshold in `keep`.
        takes_threshold: whether `keep` may be a threshold.
        takes_prompt: whether `keep` may be a budget over all images of a prompt; not for methods that work on one grid.
        takes_frames: whether `keep` may be a budget for every frame of a video; not for methods that compare
            frames or prune inside the tower.

    Args:
        keep: average number of visual tokens per decoder layer over the unpruned number, as a ratio in (0, 1]; or that
            average number itself, as a count (1 is one token, 1.0 is everything); or a `Keep`. It always means the
            average, wherever a method prunes. A method whose own default is None may leave it open.
        positions: position ids of the survivors; papers' code for LLaVA renumbers them (`"contiguous"`).
        proportional: attention to a survivor grows with the number of tokens that it stands for, itself and the dropped
            ones most like it (cosine): the log of that number is added to its logits, in the layers behind its stage
            (ToMe, arXiv 2210.09461, for what merging leaves). Needs sdpa or eager attention. None: as the method
            recommends, mostly not.

    Raises:
        BudgetError: a keep that is out of range.
        ConfigurationError: a kind of budget that the method cannot use, or unknown positions.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    verified: ClassVar[str | None] = None
    adaptive: ClassVar[bool] = False
    takes_threshold: ClassVar[bool] = False
    takes_prompt: ClassVar[bool] = True
    takes_frames: ClassVar[bool] = True

    keep: Keep | float | int | None = 1 / 9
    positions: Positions = field(default="original", kw_only=True)
    proportional: bool | None = field(default=None, kw_only=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z]*[a-z])", "_", cls.__name__).lower()

    def __post_init__(self) -> None:
        if self.positions not in ("original", "contiguous", "index"):
            raise ConfigurationError(
                f"{self.name}: positions={self.positions!r} must be original, contiguous or index."
            )
        if self.proportional is not None and not isinstance(self.proportional, bool):
            raise ConfigurationError(f"{self.name}: proportional={self.proportional!r} must be true or false.")
        if self.keep is None and type(self).keep is None:
            return
        object.__setattr__(self, "keep", Keep.of(self.keep))  # type: ignore[arg-type]
        if self.budget.threshold is not None and not self.takes_threshold:
            raise ConfigurationError(f"{self.name} has no scores to compare with a threshold; give a ratio or a count.")
        if self.budget.per == "prompt" and not self.takes_prompt:
            raise ConfigurationError(f"{self.name} works on the grid of one image; use Keep(..., per='image').")
        if self.budget.per == "frame" and not self.takes_frames:
            raise ConfigurationError(f"{self.name} does not choose frame by frame; use Keep(..., per='image').")

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
        stages = self.stages(info)
        if len(stages) != 1:
            raise ConfigurationError(
                f"{self.name} has {len(stages)} stages, so it must say in `shares` how its budget is spread over them "
                "(or set keep = None and override `select`, if its number depends on what is seen)."
            )
        (stage,), depth = stages, info.layers
        start = stage.layer
        if not 0 <= start < depth + stage.compact_earlier:
            raise ConfigurationError(
                f"{self.name} selects before layer {start}, but the model has layers 0..{depth - 1}."
            )
        share = (keep * depth - start) / max(depth - start, 1)
        if share <= 0:
            raise ConfigurationError(unreachable(self.name, keep, start, depth, start / depth))
        return (share,)

    def taps(self, info: ModelInfo) -> Sequence[Tap]:
        """What this method reads in the vision tower; only these taps are installed."""
        return ()

    def tower_stages(self, info: ModelInfo) -> Sequence[TowerStage]:
        """Where this method selects inside the vision tower, in increasing order of block. What is dropped there never
        reaches the language model; such a method has a stage before it (`BEFORE_LLM`), which sees the survivors."""
        return ()

    def probe(self, info: ModelInfo) -> Probe | None:
        """Tokens to append behind the prompt; they are removed at the method's last stage."""
        return None

    def choose(self, view: View, count: int) -> Choice:
        """Choose `count` of the view's tokens, fewer than there are; called once per image (or prompt) and stage."""
        raise NotImplementedError(f"{type(self).__name__} must define `choose` (or `select`).")

    def weighs(self, info: ModelInfo) -> bool:
        """Whether attention is proportional on such a model: as asked, or where the method recommends it."""
        return bool(self.proportional)

    def select_in_tower(self, view: TowerView) -> Choice:
        """The choice before `view.block` of the tower; called once per image and tower stage. At least one stays."""
        raise NotImplementedError(f"{type(self).__name__} has tower stages, so it must define `select_in_tower`.")

    # -- what a runtime asks -----------------------------------------------------------------------------

    @property
    def budget(self) -> Keep:
        """`keep` with its kind.

        Raises:
            ConfigurationError: for a method whose `keep` was left open.
        """
        if self.keep is None:
            raise ConfigurationError(f"{self.name} was given no keep; its number of tokens depends on the input.")
        return Keep.of(self.keep)

    @property
    def per(self) -> Per:
        """Whether a `View` holds one image (or video), one frame, or all images of a prompt."""
        return "image" if self.keep is None else self.budget.per

    @property
    def prunes(self) -> bool:
        """Whether anything can ever be dropped; if not, no stage, tap or probe is installed."""
        return self.keep is None or not self.budget.is_everything

    @property
    def takes_features(self) -> bool:
        """Whether, on models whose vision tower cannot be read (a resampler mixes its patches, or it has none),
        projected features may stand in for its keys and hidden states, and the order in which max-min diversity chooses
        them for the attention that they receive. If not, `MissingTapError` is raised."""
        return False

    @property
    def decode_from_cache(self) -> bool:
        """Decode at the positions that follow the *pruned* prompt, as published code does that renumbers; else decoding
        continues after the original positions."""
        return self.positions != "original"

    def counts(self, info: ModelInfo, entered: int) -> Sequence[int]:
        """Tokens alive after each stage of those that the method was given.

        Raises:
            ConfigurationError: if the average cannot be met for an image of this size.
        """
        budget = self.budget
        shares = self.shares(info, budget.ratio_of(entered))
        return [budget.limited(part(min(1.0, share), entered, error=1e-9), entered) for share in shares]

    def check(self, info: ModelInfo) -> None:
        """Raise before a prefill what would be raised in the middle of it.

        Raises:
            ConfigurationError: the budget cannot be met on such a model.
        """
        if self.keep is not None and self.budget.ratio is not None:
            self.shares(info, self.budget.ratio)

    def select_all(self, view: View) -> Choice:
        """The choice at `view.layer` for a view as a runtime makes it, of an image, a video or a prompt: frame by frame
        where the budget is per frame."""
        return by_frame(self.select, view, self.name) if self.per == "frame" else self.select(view)

    def select(self, view: View) -> Choice:
        """The choice at `view.layer`. Override it only where the number depends on what is seen."""
        layers = [stage.layer for stage in self.stages(view.info)]
        count = self.counts(view.info, view.entered)[layers.index(view.layer)]
        if count >= len(view):
            return Selection.everything(len(view), view.device)
        return self.choose(view, count)

    def parameters(self) -> dict[str, Any]:
        """The configuration as plain values, for traces and tables."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        if "keep" in found and isinstance(found["keep"], Keep):
            found["keep"] = found["keep"].plain
        return {name: value for name, value in found.items() if value != _USUAL.get(name, ...)}

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.parameters().items())})"


@dataclass(frozen=True, eq=False)
class Score(Method, ABC):
    """A method that gives one number per visual token; its `Keep` does the rest, a threshold included.

    Subclasses define `score(view) -> [n]`, higher is better. With a threshold as `keep`, every stage keeps what scores
    above it.
    """

    takes_threshold = True

    def choose(self, view: View, count: int) -> Choice:
        return Keep(count=count).choose(self.score(view))

    def select(self, view: View) -> Choice:
        if self.budget.threshold is not None:
            return self.budget.choose(self.score(view))
        return super().select(view)

    @abstractmethod
    def score(self, view: View) -> Tensor:
        """Importance of each token, `[n]`, higher is better."""


def unreachable(who: str, keep: float, first: int, layers: int, lowest: float) -> str:
    """What is said to a budget below what the layers before the first stage read."""
    return (
        f"{who} cannot keep {keep:.3g} of the visual tokens on average: its first stage is before layer {first} of "
        f"{layers}, and the layers before it read every token, so it stays above {lowest:.3g}. Raise keep, select "
        "earlier, or put a method that prunes before the language model in front of it with Compose."
    )
