"""Held-out questions during reinforcement learning: answered greedily under pruning, rewarded, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from foveate.data.rows import Row, Rows
from foveate.engine.attach import prune
from foveate.engine.replay import row_choices
from foveate.families import adapt
from foveate.inference.answer import GREEDY
from foveate.training.glimpse.collate import Collator
from foveate.training.plus.rewards import Rewards
from foveate.training.plus.rollouts import Pruning
from foveate.training.processes import gathered, world

Z = 1.96
"""Standard errors on either side of a mean: 95 %."""


@dataclass(frozen=True)
class HeldOut:
    """Questions that are asked at every evaluation; those of several processes are divided among them.

    Attributes:
        rows: with answers.
        collator: of the model.
        base: the stock model that is pruned.
        pruning: as in training, without sampling: a learned threshold is at its mean.
        rewards: as in training.
        size: rows of a batch.
        length: most new tokens of an answer.
    """

    rows: Rows
    collator: Collator
    base: Any
    pruning: Pruning
    rewards: Rewards
    size: int
    length: int

    def ask(self, model: Any, threshold: float | None) -> dict[str, float]:
        """Mean reward, the ends of its 95 % interval, and the share of visual tokens that were kept.

        Args:
            model: the base with its adapter.
            threshold: of the module; None: its own.
        """
        rank, count = world()
        own = [self.rows[place % len(self.rows)] for place in range(rank, _rounded(len(self.rows), count), count)]
        found = list[tuple[float | None, float]]()
        for start in range(0, len(own), self.size):
            found += self._batch(model, own[start : start + self.size], threshold, synced=count > 1)
        shares = gathered(found)
        pairs = [shares[place % count][place // count] for place in range(len(self.rows))]
        rewards = [reward for reward, _ in pairs if reward is not None]
        low, high = interval(rewards)
        mean = sum(rewards) / len(rewards) if rewards else math.nan
        return {
            "reward": mean,
            "reward_low": low,
            "reward_high": high,
            "kept_share": sum(s for _, s in pairs) / len(pairs),
        }

    @torch.no_grad()
    def _batch(
        self, model: Any, rows: Sequence[Row], threshold: float | None, synced: bool
    ) -> list[tuple[float | None, float]]:
        """Reward and kept share of each row."""
        inputs = {name: x.to(self.base.device) for name, x in self.collator.prompts(rows).items()}
        samples = [{"boxes": row.boxes, "row": row.number} for row in rows]
        method = self.pruning.method(samples, None if threshold is None else [threshold] * len(rows))
        # a placeholder would stand for an image that nobody gave
        never = sorted(adapt(self.base).token_ids.values())
        options = {"max_new_tokens": self.length, "synced_gpus": synced, "suppress_tokens": never, **GREEDY}
        shares = [1.0] * len(rows)
        with prune(self.base, method) as trace:
            ids = model.generate(**inputs, **options)
        if method is not None:
            choices = row_choices(trace.last, method, adapt(self.base).info)
            shares = [row.kept / max(row.total, 1) for row in choices]
        texts = self.collator.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        rewards = self.rewards(
            texts, [row.question for row in rows], [row.answer or "" for row in rows], kept_share=shares
        )
        return list(zip(rewards, shares, strict=True))


def _rounded(rows: int, processes: int) -> int:
    """As many rows as give every process the same number."""
    return -(-rows // processes) * processes


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Ends of the 95 % interval of a mean: Wilson's for zeros and ones, else the normal one."""
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    mean = sum(values) / n
    if set(values) <= {0.0, 1.0}:
        middle, spread = (mean + Z**2 / (2 * n)), Z * math.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2))
        return (middle - spread) / (1 + Z**2 / n), (middle + spread) / (1 + Z**2 / n)
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)
    return mean - Z * error, mean + Z * error
