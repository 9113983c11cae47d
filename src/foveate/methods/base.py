"""The two shapes that most methods have: one choice before the language model, or stages inside it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from foveate.core.budget import Keep
from foveate.core.method import BEFORE_LLM, Choice, Method, ModelInfo, Stage
from foveate.core.selection import Selection
from foveate.core.view import View
from foveate.maths.schedule import Schedule


@dataclass(frozen=True)
class BeforeLLM(Method):
    """A method that chooses once, before the language model, a number of tokens known beforehand.

    Args:
        keep: share of each image's tokens that survive, in (0, 1], or their number.
    """

    keep: float | int = 1 / 9

    def __post_init__(self) -> None:
        Keep.of(self.keep)

    def stages(self, info: ModelInfo) -> Sequence[Stage]:
        return () if Keep.of(self.keep).is_everything else (Stage(BEFORE_LLM),)

    def select(self, stage: Stage, view: View) -> Choice:
        count = Keep.of(self.keep).size(len(view))
        if count >= len(view):
            return Selection.everything(len(view), view.device)
        return self.choose(view, count)

    @abstractmethod
    def choose(self, view: View, count: int) -> Choice:
        """Choose `count` of the view's tokens, fewer than there are."""


@dataclass(frozen=True)
class InsideLLM(Method):
    """A method with stages inside the language model and a budget that is an average over all its layers.

    Subclasses define `schedule` and `choose`.

    Class attributes:
        reads_attention: whether `choose` calls `View.attention`.

    Args:
        keep: average visual tokens per decoder layer over the unpruned number, in (0, 1].
    """

    reads_attention: ClassVar[bool] = True

    keep: float = 1 / 3

    def __post_init__(self) -> None:
        Keep(ratio=self.keep)

    @abstractmethod
    def schedule(self, info: ModelInfo) -> Schedule:
        """(layer, share of the tokens alive from there on) of every stage, so that the average is `keep`.

        Raises:
            ConfigurationError: if the average cannot be met on such a model.
        """

    def stages(self, info: ModelInfo) -> Sequence[Stage]:
        if self.keep == 1.0:
            return ()
        return [Stage(layer, queries=self.reads_attention and layer > 0) for layer, _ in self.schedule(info)]

    def select(self, stage: Stage, view: View) -> Choice:
        entered = view.memo.setdefault("entered", len(view))
        share = dict(self.schedule(view.info))[stage.layer]
        # the solved share may be short of a whole token by rounding error
        count = Keep(ratio=min(1.0, share * (1 + 1e-9))).size(entered)
        if count >= len(view):
            return Selection.everything(len(view), view.device)
        return self.choose(stage, view, count)

    @abstractmethod
    def choose(self, stage: Stage, view: View, count: int) -> Choice:
        """Choose `count` of the view's tokens, fewer than there are."""
