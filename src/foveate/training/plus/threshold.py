"""The glimpse threshold as part of the policy: sampled for every rollout, learned from its reward."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from foveate.errors import ConfigurationError


class ThresholdPolicy(nn.Module):
    """A Gaussian over the logit of the pruning threshold, with a learned mean.

    Completions of one group are sampled under different thresholds. Their advantages say whether pruning more paid:
    the reward must contain both the task and the pruning rate, or the threshold drifts to one end.

    Args:
        threshold: probability to start from, in (0, 1).
        spread: standard deviation of the logit.

    Raises:
        ConfigurationError: a threshold or spread out of range.
    """

    def __init__(self, threshold: float = 0.5, spread: float = 0.5) -> None:
        super().__init__()
        if not 0 < threshold < 1 or spread <= 0:
            raise ConfigurationError(
                f"threshold={threshold} must lie between 0 and 1 (exclusive) and spread={spread} be positive."
            )
        self.mean = nn.Parameter(torch.tensor(math.log(threshold / (1 - threshold))))
        self.spread = spread

    @property
    def threshold(self) -> float:
        """Where the policy stands now."""
        return self.mean.sigmoid().item()

    def sample(self, count: int, spread: bool = True) -> Tensor:
        """`[count]` logits of thresholds; without `spread` all are the mean."""
        with torch.no_grad():
            noise = torch.randn(count, device=self.mean.device)
            return self.mean + (self.spread if spread else 0.0) * noise

    def log_probability(self, logits: Tensor) -> Tensor:
        """`[count]` log-density of sampled logits (without its constant)."""
        return -0.5 * ((logits.to(self.mean.device) - self.mean) / self.spread) ** 2

    def loss(self, logits: Tensor, advantages: Tensor) -> Tensor:
        """Policy gradient loss of one batch of rollouts."""
        return -(self.log_probability(logits) * advantages.to(self.mean.device)).mean()
