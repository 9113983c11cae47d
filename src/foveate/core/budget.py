"""How many visual tokens to keep: the only place that rounds."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, replace
from numbers import Integral, Real
from typing import Literal, get_args

import torch
from torch import Tensor

from foveate.errors import BudgetError

Per = Literal["image", "prompt", "frame"]


@dataclass(frozen=True, eq=False)
class Keep:
    """A budget of visual tokens. A whole number is always a number of tokens, a float always a share of them: `cap=1`
    is one token, `cap=1.0` all of them, and the two are different budgets.

    Exactly one of `ratio`, `count` and `threshold` is given:

    Args:
        ratio: share of the tokens, in (0, 1]; rounded down, as the papers' code does, but a ratio that is k/n up to
            rounding error keeps k of n.
        count: number of tokens, at least 1; never more than there are.
        threshold: keep tokens whose score is strictly greater; the number depends on the input.
        floor: at least this many tokens survive (the best ones fill up).
        cap: at most this many tokens (int) or this share of them (float in (0, 1]) survive.
        per: `"image"` applies the budget to every image or video, `"prompt"` to all of a row together, `"frame"` to
            every frame of a video (step in time) by itself; an image is one frame.

    Raises:
        BudgetError: at construction, if a value is out of range or not exactly one kind is given.
    """

    ratio: float | None = None
    count: int | None = None
    threshold: float | None = None
    floor: int = 1
    cap: int | float | None = None
    per: Per = "image"

    def __post_init__(self) -> None:
        kinds = [name for name in ("ratio", "count", "threshold") if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise BudgetError(
                f"Keep needs exactly one of ratio, count and threshold, got {kinds or 'none'}; "
                "write for example Keep(ratio=1/9) or Keep(count=64)."
            )
        if self.ratio is not None:
            _check_ratio("ratio", self.ratio)
            object.__setattr__(self, "ratio", float(self.ratio))
        if self.count is not None:
            _check_count("count", self.count, least=1)
        if self.threshold is not None:
            if isinstance(self.threshold, bool) or not math.isfinite(self.threshold):
                raise BudgetError(f"Keep(threshold={self.threshold}) must be a finite number.")
            object.__setattr__(self, "threshold", float(self.threshold))
        self._check_limits()

    def _check_limits(self) -> None:
        _check_count("floor", self.floor, least=0)
        if isinstance(self.cap, float):
            _check_ratio("cap", self.cap)
        elif self.cap is not None:
            _check_count("cap", self.cap, least=1)
            if self.cap < self.floor:
                raise BudgetError(
                    f"Keep(cap={self.cap}) is below floor={self.floor}; raise the cap or lower the floor."
                )
        if self.per not in get_args(Per):
            raise BudgetError(f"Keep(per={self.per!r}) must be 'image', 'prompt' or 'frame'.")

    def __eq__(self, other: object) -> bool:
        return self._key == other._key if isinstance(other, Keep) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[object, ...]:
        """Its values with their kinds: 1 == 1.0 in Python, one token and all tokens are not."""
        return tuple((type(value), value) for value in astuple(self))

    @classmethod
    def of(cls, value: Keep | float | int, per: Per = "image") -> Keep:
        """Read a budget as users write it: a float is a ratio (`0.11`; `1.0` keeps everything), a whole number is a
        number of tokens (`64`; `1` keeps a single one).

        Raises:
            BudgetError: neither, or out of range.
        """
        if isinstance(value, Keep):
            return value
        if isinstance(value, bool) or not isinstance(value, Real):
            hint = (
                ': write keep=1/9 without quotes, or the method as a text, "vitcop:keep=1/9"'
                if isinstance(value, str)
                else ""
            )
            raise BudgetError(f"keep={value!r} must be a ratio in (0, 1], a whole number of tokens or a Keep{hint}.")
        if isinstance(value, Integral):
            if value < 1:
                raise BudgetError(f"keep={value!r} must lie in (0, 1] as a ratio, or be a number of tokens from 1 on.")
            return cls(count=int(value), per=per)
        if value > 1:
            raise BudgetError(
                f"keep={value!r} is a ratio and must lie in (0, 1]; a number of tokens is written without a point, for "
                "example keep=64."
            )
        return cls(ratio=float(value), per=per)

    def ratio_of(self, n: int) -> float:
        """The budget as a share of `n` tokens.

        Raises:
            BudgetError: for a threshold, whose number depends on the scores.
        """
        if self.ratio is not None:
            return self.ratio
        if self.count is not None:
            return min(1.0, self.count / max(n, 1))
        raise BudgetError("A threshold budget has no share before the scores are known.")

    def share(self, ratio: float) -> Keep:
        """The same floor, cap and scope with another ratio."""
        return replace(self, ratio=ratio, count=None, threshold=None)

    @property
    def plain(self) -> float | int | str:
        """As users write it, for traces and tables."""
        kind = self.ratio if self.ratio is not None else self.count
        if kind is not None and self == (Keep(ratio=self.ratio) if self.count is None else Keep(count=self.count)):
            return kind
        return repr(self)

    @property
    def is_everything(self) -> bool:
        """Whether no token can ever be dropped, whatever the input."""
        return self.ratio == 1.0 and self.caps_nothing

    @property
    def caps_nothing(self) -> bool:
        """Whether there is no cap, or one at all tokens."""
        return self.cap is None or (isinstance(self.cap, float) and self.cap == 1.0)

    def size(self, n: int) -> int:
        """Number of tokens to keep of `n` for ratio and count budgets.

        Raises:
            BudgetError: for a threshold budget, whose size depends on the scores.
        """
        if n == 0:
            return 0
        if self.ratio is not None:
            wanted = part(self.ratio, n)
        elif self.count is not None:
            wanted = self.count
        else:
            raise BudgetError("A threshold budget has no size before the scores are known; use `choose`.")
        return self.limited(wanted, n)

    def limited(self, wanted: int, n: int) -> int:
        """A number of tokens of `n` within floor and cap."""
        return max(min(wanted, self._cap(n)), min(self.floor, n))

    def choose(self, score: Tensor) -> Tensor:
        """Pick tokens by score, higher is better.

        Args:
            score: `[n]`, any float type.

        Returns:
            Sorted indices `[m]` (int64) for ratio and count budgets; a boolean mask `[n]` for thresholds, so
            that the number of survivors never has to be copied to the host here.
        """
        n = score.shape[0]
        if self.threshold is None:
            return top(score, self.size(n))
        mask = score > self.threshold
        rank = torch.empty_like(score, dtype=torch.long)
        rank[score.argsort(descending=True, stable=True)] = torch.arange(n, device=score.device)
        return (mask & (rank < self._cap(n))) | (rank < min(self.floor, n))

    def _cap(self, n: int) -> int:
        if self.cap is None:
            return n
        return min(n, part(self.cap, n) if isinstance(self.cap, float) else self.cap)


def part(share: float, n: int, error: float = 1e-15) -> int:
    """A share of `n` in whole numbers: rounded down, but k for a share that is k/n up to rounding error (0.29 of 100 is
    29, although `0.29 * 100 < 29` in floating point).

    Args:
        error: relative error of the share; more than that of one division for one that was computed in many steps.
    """
    return math.floor(share * n * (1 + error))


def top(score: Tensor, k: int) -> Tensor:
    """Sorted indices `[k]` of the `k` largest entries of `score` `[n]`; ties go to the smaller index."""
    return score.argsort(descending=True, stable=True)[:k].sort().values


def _check_ratio(name: str, value: float) -> None:
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 < value <= 1:
        raise BudgetError(f"Keep({name}={value!r}) must lie in (0, 1]; 1/9 keeps every ninth token on average.")


def _check_count(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise BudgetError(f"Keep({name}={value!r}) must be a whole number of tokens >= {least}.")
