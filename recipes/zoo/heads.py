"""Auxiliary heads: what each merged token shows. Training only, never saved with the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.scenes.labels import BLANK, CLASSES, IGNORE
from foveate.scenes.moving import WAYS
from foveate.scenes.palette import MAX_CHARACTERS

Metrics = dict[str, float]
_BALANCED = ("kind", "center")  # nearly every cell is background: the rest counts twice


class DenseHeads(nn.Module):
    """Linear read-outs of merged features `[..., D]`: object labels and the characters in each cell."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.objects = nn.Linear(width, sum(CLASSES.values()))
        self.characters = nn.Linear(width, MAX_CHARACTERS * (BLANK + 1))
        self.ways = nn.Linear(width, 1 + len(WAYS))

    def object_loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Metrics]:
        """Sum of the classes' cross entropies and their accuracies; labels `[..., len(CLASSES)]`."""
        logits = self.objects(self.norm(features.float())).flatten(0, -2)
        targets = labels.reshape(-1, len(CLASSES)).long()
        loss, metrics = logits.new_zeros(()), Metrics()
        for name, scores, target in zip(
            CLASSES, logits.split(list(CLASSES.values()), -1), targets.unbind(-1), strict=True
        ):
            known = target > 0 if name in _BALANCED else target != IGNORE
            if name in _BALANCED:
                loss = loss + 0.5 * F.cross_entropy(scores, target)
            if known.any():
                weight = 0.5 if name in _BALANCED else 1.0
                loss = loss + weight * F.cross_entropy(scores[known], target[known])
                metrics[name] = accuracy(scores[known], target[known])
        return loss, metrics

    def character_loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, float]:
        """Cross entropy of `labels.local_characters` and the accuracy on cells that hold a character."""
        logits = self.characters(self.norm(features.float())).reshape(-1, BLANK + 1)
        target = labels.reshape(-1).long()
        weight = logits.new_ones(BLANK + 1)
        weight[BLANK] = 0.3
        written = (target != IGNORE) & (target != BLANK)
        loss = F.cross_entropy(logits, target, ignore_index=IGNORE, weight=weight)
        return loss, accuracy(logits[written], target[written])

    def way_loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, float]:
        """Cross entropy of which way what a token shows moves, and its accuracy; labels `[...]`, 0: it stands still."""
        logits, target = self.ways(self.norm(features.float())).flatten(0, -2), labels.flatten().long()
        known = target != IGNORE
        if not known.any():
            return logits.sum() * 0, float("nan")
        return F.cross_entropy(logits[known], target[known]), accuracy(logits[known], target[known])

    def directions(self) -> dict[str, Tensor]:
        """For each class name its centred read-out rows `[classes, D]`."""
        rows = (self.objects.weight * self.norm.weight).detach().split(list(CLASSES.values()))
        return {name: r - r.mean(0) for name, r in zip(CLASSES, rows, strict=True)}


@torch.no_grad()
def accuracy(logits: Tensor, target: Tensor) -> float:
    """Share of right answers, NaN without any."""
    return (logits.argmax(-1) == target).float().mean().item()
