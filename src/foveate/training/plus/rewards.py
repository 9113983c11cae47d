"""What a completion is worth: a weighted sum of rewards in [0, 1], in the form that TRL calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveate.errors import ConfigurationError
from foveate.scoring import METRICS
from foveate.training import rewards
from foveate.training.plus.judge import Judge, JudgeError
from foveate.training.processes import together


def _against_one(name: str) -> Callable[[str, str], float]:
    return lambda completion, answer: METRICS[name](completion, [answer])


TEXT: dict[str, Callable[[str, str], float]] = {
    **{name: _against_one(name) for name in ("exact_match", "anls", "multiple_choice")},
    "box_iou": rewards.box_iou,
    "box_format": lambda completion, _: rewards.box_format(completion),
}
"""Rewards that compare a completion with the answer."""

NAMES = (*TEXT, "judge", "pruning_rate")


@dataclass
class Rewards:
    """Weighted sum of rewards; a completion that one of them cannot score gets none (TRL leaves it out).

    Args:
        weights: by name, see `NAMES`. `pruning_rate` is the share of the visual tokens that were removed; it
            makes sense where the policy decides about that (`PlusSettings.learn_threshold`).
        judge: needed for `judge`.

    Raises:
        ConfigurationError: an unknown name, no weight, or a judge missing.
    """

    weights: Mapping[str, float]
    judge: Judge | None = None
    __name__ = "reward"  # what TRL calls it in its logs

    def __post_init__(self) -> None:
        if unknown := set(self.weights) - set(NAMES):
            raise ConfigurationError(f"no reward {', '.join(sorted(unknown))}; choose from {', '.join(NAMES)}")
        if not any(self.weights.values()):
            raise ConfigurationError("every reward has the weight 0; give at least one, for example exact_match=1")
        if self.weights.get("judge") and self.judge is None:
            raise ConfigurationError("the reward `judge` needs a judge: give its model and URL")
        if self.judge is not None and not self.weights.get("judge"):
            raise ConfigurationError("a judge is given, but no weight for the reward `judge`")

    def __call__(
        self,
        completions: Sequence[Any],
        question: Sequence[str],
        answer: Sequence[str],
        kept_share: Sequence[float],
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        """One reward per completion, None for one that cannot be scored."""
        texts = [text_of(completion) for completion in completions]
        asked = [name for name, weight in self.weights.items() if weight]
        terms: dict[str, Sequence[float | None]] = {}
        with together(JudgeError):
            terms = {name: self._term(name, texts, question, answer, kept_share) for name in asked}
        if log_metric is not None:
            for name, values in terms.items():
                known = [value for value in values if value is not None]
                if known:
                    log_metric(f"reward_{name}", sum(known) / len(known))
        return [self._sum(dict(zip(terms, values, strict=True))) for values in zip(*terms.values(), strict=True)]

    def _term(
        self,
        name: str,
        texts: Sequence[str],
        questions: Sequence[str],
        answers: Sequence[str],
        kept_share: Sequence[float],
    ) -> Sequence[float | None]:
        if name == "pruning_rate":
            return [1.0 - share for share in kept_share]
        if name == "judge":
            assert self.judge is not None
            return self.judge.scores(list(zip(questions, answers, texts, strict=True)))
        return [TEXT[name](text, answer) for text, answer in zip(texts, answers, strict=True)]

    def _sum(self, terms: Mapping[str, float | None]) -> float | None:
        total = 0.0
        for name, value in terms.items():
            if value is None:
                return None
            total += self.weights[name] * value
        return total


def text_of(completion: Any) -> str:
    """The text of a completion: a string, or a list of chat messages."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)
