"""ViTCoP with one thing changed: toward the published code, or in what a stage chooses by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from foveate.core.method import Stage
from foveate.core.selection import Choice, Selection
from foveate.core.view import ModelInfo, View
from foveate.maths.clustering import density_peaks
from foveate.maths.copruning import select_and_merge
from foveate.methods import Method, ViTCoP, ViTCoPDiverse
from foveate.methods.vitcop import key_norm

PUBLISHED = {"saliency": "received", "shallow": "key_norm", "deep": "key_norm"}
"""What the stages choose by in the paper; the default on towers with a class token."""
OTHERWISE = {"saliency": "mix", "shallow": "diversity", "deep": "diversity"}
"""The default on other towers."""


class AddTarget(ViTCoP):
    """A merged token is its target plus the group's mean, as published."""

    def _co_prune(self, view: View, budget: int) -> Selection:
        labels = view.memo["labels"][view.index]
        return select_and_merge(key_norm(view), labels, budget, add_target=True)


class OwnCluster(ViTCoP):
    """Tokens without a cluster form one of their own, as published."""

    def _cluster(self, view: View, kept: Tensor) -> None:
        super()._cluster(view, kept)
        side = max(view.grid.h, view.grid.w)
        _, fraction = self.preset(view.info, self.budget.ratio_of(view.entered))
        keys = view.tap(self._keys).float()[kept]
        view.memo["labels"][kept] = density_peaks(keys, view.positions()[kept, 1:] / side, fraction)


class RandomShallow(ViTCoP):
    """Stage 2 keeps any tokens, and merges none."""

    def _co_prune(self, view: View, budget: int) -> Choice:
        order = torch.randperm(len(view), generator=torch.Generator().manual_seed(0))
        return order[:budget].sort().values.to(view.device)


class LargestShallow(ViTCoP):
    """Stage 2 keeps the tokens of largest key norm, and merges none."""

    def _co_prune(self, view: View, budget: int) -> Choice:
        return key_norm(view).topk(min(budget, len(view))).indices.sort().values


class RandomBoth(RandomShallow):
    """Stages 2 and 3 keep any tokens."""

    def select(self, view: View) -> Choice:
        if view.layer == self.layers(view.info)[1]:
            return self._co_prune(view, self.counts(view.info, view.entered)[2])
        return super().select(view)


class RandomDeep(ViTCoP):
    """Stage 3 keeps any tokens."""

    def select(self, view: View) -> Choice:
        if view.layer != self.layers(view.info)[1]:
            return super().select(view)
        order = torch.randperm(len(view), generator=torch.Generator().manual_seed(0))
        return order[: self.counts(view.info, view.entered)[2]].sort().values.to(view.device)


class FirstAlone(ViTCoP):
    """Stage 1 and no other."""

    def stages(self, info: ModelInfo) -> Sequence[Stage]:
        return super().stages(info)[:1]

    def shares(self, info: ModelInfo, keep: float) -> Sequence[float]:
        return super().shares(info, keep)[:1]


class Renumbered(ViTCoP):
    """Positions compacted in stages 1 and 3, as published."""

    def stages(self, info: ModelInfo) -> Sequence[Stage]:
        modes: tuple[Any, ...] = ("contiguous", "original", "index")
        return [replace(stage, positions=mode) for stage, mode in zip(super().stages(info), modes, strict=True)]


class DecodeFromCache(ViTCoP):
    """Decoding continues at the length of the pruned cache, as published."""

    @property
    def decode_from_cache(self) -> bool:
        return True


def variants(llava: bool) -> dict[str, Callable[[float], Method]]:
    """What is changed in published choices, and how to make it. The published positions and the published code exist
    for one-dimensional positions, LLaVA, only."""
    found: dict[str, Callable[[float], Method]] = {
        "merge adds the target (published code)": lambda keep: AddTarget(keep, **PUBLISHED),
        "unlabelled tokens are a cluster (published code)": lambda keep: OwnCluster(keep, **PUBLISHED),
        "stage 1 by key norm": lambda keep: ViTCoP(keep, **PUBLISHED | {"saliency": "key_norm"}),
        "stage 1 a mix": lambda keep: ViTCoP(keep, **PUBLISHED | {"saliency": "mix"}),
        "stage 2 at random": lambda keep: RandomShallow(keep, **PUBLISHED),
        "stage 2 by largest key norm": lambda keep: LargestShallow(keep, **PUBLISHED),
        "stage 2 by diversity": lambda keep: ViTCoP(keep, **PUBLISHED | {"shallow": "diversity"}),
        "stages 2 and 3 by diversity": lambda keep: ViTCoP(keep, **OTHERWISE | {"saliency": "received"}),
        "stage 1 a mix, 2 by diversity, 3 by attention": lambda keep: ViTCoP(keep, **OTHERWISE | {"deep": "attention"}),
        "all three (`vitcop_diverse`)": lambda keep: ViTCoPDiverse(keep),
    }
    if llava:
        found |= {
            "positions renumbered (published code)": lambda keep: Renumbered(keep, **PUBLISHED),
            "decoding continues at the cache's length (published code)": lambda keep: DecodeFromCache(
                keep, **PUBLISHED
            ),
            "all of the published code (`official=True`)": lambda keep: ViTCoP(keep, official=True),
        }
    return found


def controls() -> dict[str, Callable[[float], Method]]:
    """Stages of the published choices left out, at random, or (the last) by the question."""
    return {
        "stage 1 alone, within the budget": lambda keep: FirstAlone(keep, vision_keep=keep, **PUBLISHED),
        "stages 2 and 3 at random": lambda keep: RandomBoth(keep, **PUBLISHED),
        "stage 3 at random": lambda keep: RandomDeep(keep, **PUBLISHED),
        "stage 3 by the last token's attention": lambda keep: ViTCoP(keep, **PUBLISHED | {"deep": "attention"}),
    }


def diverse_controls() -> dict[str, Callable[[float], Method]]:
    """The same for `vitcop_diverse`, whose stage 3 does not read the question by default."""
    return {
        "stage 3 at random": lambda keep: RandomDeep(keep, **OTHERWISE),
        "stage 3 by the last token's attention": lambda keep: ViTCoPDiverse(keep, deep="attention"),
    }
