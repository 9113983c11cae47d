"""Methods that select in the vision tower only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foveate.core.method import BEFORE_LLM, Method, Stage
from foveate.core.selection import Choice, Selection
from foveate.core.view import ModelInfo, View
from foveate.errors import ConfigurationError


@dataclass(frozen=True, eq=False)
class TowerMethod(Method):
    """Base of methods that select in the vision tower only; before the language model they pass on what is left.

    Subclasses define `tower_stages` and `select_in_tower`. As no decoder layer sees what the tower dropped, `keep` is
    both the share of tokens that the tower leaves and the average over all decoder layers. They stand alone, in
    `ViTCoP(tower=...)` or in front of others in `Compose`.
    """

    takes_prompt = False
    takes_frames = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.proportional:
            raise ConfigurationError(
                f"{self.name} drops tokens in the vision tower, and proportional attention is the language model's; "
                "give it to a method that selects there."
            )

    def stages(self, info: ModelInfo) -> Sequence[Stage]:
        return (Stage(BEFORE_LLM),)

    def select(self, view: View) -> Choice:
        return Selection.everything(len(view), view.device)
