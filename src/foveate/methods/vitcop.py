"""ViTCoP: vision filter, cluster-guided co-pruning in shallow layers, text-guided pruning in deep ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from foveate.core.budget import Keep, part, top
from foveate.core.method import BEFORE_LLM, Method, Reads, Stage
from foveate.core.selection import Choice, Selection
from foveate.core.tower import TowerStage, TowerView
from foveate.core.tower_method import TowerMethod
from foveate.core.view import ModelInfo, Tap, View
from foveate.errors import ConfigurationError
from foveate.maths.clustering import density_peaks
from foveate.maths.copruning import select_and_merge
from foveate.maths.diversity import max_min
from foveate.methods.tower_filter import TowerFilter

CHOICES = {
    "saliency": ("received", "key_norm", "mix"),
    "shallow": ("key_norm", "diversity"),
    "deep": ("key_norm", "diversity", "attention"),
}
"""What each stage can choose by; the first is published."""
WITHOUT_CLASS_TOKEN = {"saliency": "mix", "shallow": "diversity", "deep": "diversity"}
_READS: dict[str, Reads] = {"key_norm": "keys", "diversity": "nothing", "attention": "attention"}
PRESETS = {1 / 9: (0.3, 0.12), 2 / 9: (0.4, 0.15), 1 / 3: (0.5, 0.18)}
"""Published (vision keep, cluster fraction) by average keep ratio."""


@dataclass(frozen=True)
class ViTCoP(Method):
    """Visual-Textual Co-Pruning (arXiv 2601.17818).

    1. Before the language model keep the patches that receive most attention in the vision tower (from the class
       token where there is one; on towers without, attention received from all patches in the last block with
       global attention: our choice, not the paper's) and cluster them by their key features.
    2. Before a shallow layer keep tokens of every cluster and merge the rest of each cluster into one.
    3. Before a deep layer keep the tokens with the smallest key norm.

    Saliency inside the language model is the L2 norm of the head-mean of the previous layer's keys (small =
    salient), so no attention matrix is needed.

    Where the tower cannot be read, projected features and their max-min diversity stand in for it
    (`Method.takes_features`); the trace says so.

    Args:
        keep: average visual tokens per decoder layer, as a ratio, count or `Keep`. 1/9, 2/9 and 1/3 are the published
            presets; other values interpolate their vision keep and cluster fraction.
        vision_keep: share kept in stage 1. None: from `keep`.
        cluster_fraction: cluster centres over tokens kept in stage 1. None: from `keep`.
        shallow_layer, deep_layer: layers of stages 2 and 3. None: 2 and 22 of 32, scaled to the depth; behind the first
            layer with keys per token, if recurrent ones come first.
        deep_divisor: stage 3 keeps this fraction of stage 2's tokens.
        kernel_width, reach: density kernel and spatial limit of the clustering.
        saliency: what chooses patches in stage 1: `"received"` attention (published), `"key_norm"` (small first), or
            our `"mix"`: a part by attention, then the projected features most different (cosine) from all chosen so
            far. None: published on towers with a class token, `"mix"` on others.
        attended: with `"mix"`, the part of stage 1's tokens that attention chooses.
        shallow, deep: what stages 2 and 3 choose by: `"key_norm"` (published; clusters are merged in stage 2), our
            `"diversity"` (hidden states most different from all chosen so far; nothing is clustered or merged), or in
            stage 3 the `"attention"` of the prompt's last token in the layer before. None: published on towers with a
            class token, `"diversity"` on others (chosen on validation questions; docs/vitcop.md).
        saliency_block: vision block that stage 1 reads. None: the family's choice.
        official: reproduce the published code: a merged token is its target *plus* the group's mean (twice the
            scale), positions are compacted in stages 1 and 3 whatever `positions` says, decoding continues at the
            layer-0 cache length, unlabelled tokens form a cluster of their own. Off, merged tokens are means,
            positions are as `positions` says and unlabelled tokens join the nearest cluster.
        queries: without a class token, how many patches the attention received is averaged over (see `Tap`); None: all.
        tower: a method that prunes the vision tower first, or a share as short for `TowerFilter(share)`; `keep` stays
            the average of the image's tokens over the decoder layers, and stage 1 keeps at most what the tower left.

    Raises:
        ConfigurationError: contradictory parameters, or layers that the model does not have.
    """

    name = "vitcop"
    paper = "arXiv 2601.17818"
    verified: ClassVar[str | None] = "official implementation (LLaVA-1.5): clustering, merging, budgets, end to end"
    takes_prompt = False

    vision_keep: float | None = None
    cluster_fraction: float | None = None
    shallow_layer: int | None = None
    deep_layer: int | None = None
    deep_divisor: float = 5.0
    kernel_width: float = 8.0
    reach: float = 0.6
    saliency: Literal["received", "key_norm", "mix"] | None = None
    attended: float = 0.25
    shallow: Literal["key_norm", "diversity"] | None = None
    deep: Literal["key_norm", "diversity", "attention"] | None = None
    saliency_block: int | None = None
    official: bool = False
    queries: int | None = Tap.queries
    tower: TowerMethod | float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for share in (self.vision_keep, self.cluster_fraction):
            if share is not None:
                Keep(ratio=share)
        if self.deep_divisor < 1 or self.kernel_width <= 0 or self.reach <= 0:
            raise ConfigurationError("ViTCoP: deep_divisor must be >= 1, kernel_width and reach positive.")
        if not 0 <= self.attended <= 1:
            raise ConfigurationError(f"ViTCoP(attended={self.attended}) must be a share from 0 to 1.")
        for field, known in CHOICES.items():
            if getattr(self, field) not in (None, *known):
                raise ConfigurationError(f"ViTCoP({field}={getattr(self, field)!r}) must be one of {', '.join(known)}.")
        if self.official and any(getattr(self, field) not in (None, known[0]) for field, known in CHOICES.items()):
            raise ConfigurationError("ViTCoP(official=True) is the published code; leave saliency, shallow and deep.")
        if isinstance(self.tower, float | int):
            object.__setattr__(self, "tower", TowerFilter(keep=self.tower))
        if self.tower is not None and (self.official or not isinstance(self.tower, TowerMethod)):
            raise ConfigurationError(
                f"ViTCoP(tower={self.tower}) must be a method that prunes the tower, and none with official=True."
            )

    @property
    def takes_features(self) -> bool:
        return not self.official

    @property
    def decode_from_cache(self) -> bool:
        return self.official or super().decode_from_cache

    # -- plan --------------------------------------------------------------------------------------------

    def layers(self, info: ModelInfo) -> tuple[int, int]:
        """Layers of stages 2 and 3 on a model of this depth."""
        shallow = self.shallow_layer
        if shallow is None:
            (shallow,) = info.reading_stages((max(1, round(info.layers * 2 / 32)),))
        deep = max(shallow + 1, round(info.layers * 22 / 32)) if self.deep_layer is None else self.deep_layer
        if not 0 < shallow < deep < info.layers:
            raise ConfigurationError(
                f"ViTCoP needs 0 < shallow_layer < deep_layer < {info.layers} layers, got {shallow} and {deep}."
            )
        return shallow, deep

    def stages(self, info: ModelInfo) -> Sequence[Stage]:
        if self.official and info.family != "llava":
            raise ConfigurationError("ViTCoP(official=True) exists for LLaVA only; the published code has no other.")
        shallow, deep = self.layers(info)
        if not self.official:
            _, second, third = (_READS.get(choice, "nothing") for choice in self.choices(info))
            return Stage(BEFORE_LLM), Stage(shallow, reads=second), Stage(deep, reads=third)
        return (
            Stage(BEFORE_LLM, positions="contiguous"),
            Stage(shallow, reads="keys", positions="original"),
            Stage(deep, reads="keys", positions="index"),
        )

    def preset(self, info: ModelInfo, keep: float) -> tuple[float, float]:
        """Vision keep and cluster fraction: given, published or interpolated (two decimals, as published)."""
        ratios, presets = list(PRESETS), np.array(list(PRESETS.values()))
        slope = (presets[-1] - presets[0]) / (ratios[-1] - ratios[0])
        vision, cluster = np.round(presets[0] + (keep - ratios[0]) * slope, 2).tolist()
        if (tower := self._in_tower) is not None and tower.keep is not None and tower.budget.ratio is not None:
            vision = min(vision, tower.budget.ratio)
        # very small budgets: leave at least half of the average for the layers after the shallow stage
        vision = min(vision, 1.0, info.layers * keep / (2 * self.layers(info)[0]))
        return (
            vision if self.vision_keep is None else self.vision_keep,
            min(cluster, 1.0) if self.cluster_fraction is None else self.cluster_fraction,
        )

    def shares(self, info: ModelInfo, keep: float) -> Sequence[float]:
        many = 10**9
        return [number / many for number in self._budgets(info, keep, many)]

    def counts(self, info: ModelInfo, entered: int) -> tuple[int, int, int]:
        """Tokens alive after each stage, never more than after the stage before; rounded as the published code does."""
        budget = self.budget
        first, shallow, deep = self._budgets(info, budget.ratio_of(entered), entered)
        return budget.limited(first, entered), budget.limited(shallow, entered), budget.limited(deep, entered)

    def _budgets(self, info: ModelInfo, keep: float, n: int) -> tuple[int, int, int]:
        vision, _ = self.preset(info, keep)
        first = max(1, part(vision, n))
        shallow, deep = stage_budgets(keep, vision, first, info.layers, *self.layers(info), self.deep_divisor)
        if shallow > first:  # more than stage 1 left: give the surplus to the deep layers
            start = self.layers(info)[1]
            deep = round((info.layers * keep * n - start * first) / (info.layers - start))
        shallow = min(max(shallow, 1), first)
        return first, shallow, min(max(deep, 1), shallow)

    @property
    def _in_tower(self) -> TowerMethod | None:
        """The tower's method, unless it leaves everything."""
        return self.tower if isinstance(self.tower, TowerMethod) and self.tower.prunes else None

    def tower_stages(self, info: ModelInfo) -> Sequence[TowerStage]:
        return () if self._in_tower is None else self._in_tower.tower_stages(info)

    def select_in_tower(self, view: TowerView) -> Choice:
        assert self._in_tower is not None
        return self._in_tower.select_in_tower(view)

    def parameters(self) -> dict[str, Any]:
        found = super().parameters()
        tower = found.pop("tower")
        return found if tower is None else found | {"tower": str(tower)}

    def choices(self, info: ModelInfo) -> tuple[str, str, str]:
        """What the three stages choose by on such a model."""
        first, second, third = (
            getattr(self, field) or (known[0] if info.has_class_token else WITHOUT_CLASS_TOKEN[field])
            for field, known in CHOICES.items()
        )
        return first, second, third

    def taps(self, info: ModelInfo) -> Sequence[Tap]:
        saliency, shallow, _ = self.choices(info)
        keys = (self._keys,) if "key_norm" in (saliency, shallow) else ()  # only merging needs clusters
        return keys if saliency == "key_norm" else (*keys, self._received)

    @property
    def _keys(self) -> Tap:
        return Tap("keys", self.saliency_block)

    @property
    def _received(self) -> Tap:
        return Tap("received", self.saliency_block, self.queries)

    # -- the three stages --------------------------------------------------------------------------------

    def select(self, view: View) -> Choice:
        """As many as `counts` says, but stages 1 and 2 do more than choose: they cluster and merge."""
        first, shallow, deep = self.counts(view.info, view.entered)
        _, second, third = self.choices(view.info)
        if view.layer == BEFORE_LLM:
            return self._filter(view, min(first, len(view)))
        if view.layer == self.layers(view.info)[0]:
            return self._co_prune(view, shallow) if second == "key_norm" else self._most_diverse(view, shallow)
        if third == "diversity":
            return self._most_diverse(view, deep)
        score = -key_norm(view) if third == "key_norm" else view.attention().mean((0, 1))
        return top(score, min(deep, len(view)))

    def _filter(self, view: View, count: int) -> Tensor:
        saliency, shallow, _ = self.choices(view.info)
        score = -view.tap(self._keys).float().norm(dim=-1) if saliency == "key_norm" else view.tap(self._received)
        if saliency == "mix":
            seeds = score.topk(max(1, part(self.attended, count))).indices
            kept = max_min(view.hidden, count, seeds, rough=True).sort().values
        else:
            kept = top(score, count)
        if shallow == "key_norm":
            self._cluster(view, kept)
        view.memo["most salient"] = score.argmax().view(1)
        return kept

    def _cluster(self, view: View, kept: Tensor) -> None:
        """Leave for stage 2 which cluster each token belongs to, `[N]`."""
        places, side = view.places()
        _, fraction = self.preset(view.info, self.budget.ratio_of(view.entered))
        labels = density_peaks(
            view.tap(self._keys).float()[kept], places[kept, 1:] / side, fraction, self.kernel_width,
            self.reach, complete=not self.official,
        )  # fmt: skip
        view.memo["labels"] = torch.full((view.total,), -1, device=view.device).index_copy_(0, kept, labels)

    @staticmethod
    def _most_diverse(view: View, count: int) -> Choice:
        """The most salient token and those that differ most from it and from each other; a start that costs nothing."""
        if count >= len(view):
            return Selection.everything(len(view), view.device)
        start = torch.searchsorted(view.index, view.memo["most salient"].to(view.device)).clamp(max=len(view) - 1)
        return max_min(view.hidden, count, start, rough=True).sort().values

    def _co_prune(self, view: View, budget: int) -> Selection:
        if budget >= len(view) and not self.official:
            return Selection.everything(len(view), view.device)
        norm = key_norm(view)
        labels = view.memo["labels"].to(norm.device)[view.index]
        host = torch.stack([norm, labels.float()]).cpu()  # the one sync of this stage
        return select_and_merge(host[0], host[1], budget, add_target=self.official).to(view.device)


def key_norm(view: View) -> Tensor:
    """`[n]` length of the head-mean of the keys in the layer before."""
    found: Tensor = view.keys.float().mean(0).norm(dim=-1)
    return found


def stage_budgets(
    keep: float, vision_keep: float, first: int, layers: int, shallow_layer: int, deep_layer: int, divisor: float
) -> tuple[int, int]:
    """Tokens after stages 2 and 3 so that the average over all layers is `keep` (published formula, with the
    model's depth for its 32)."""
    rest = deep_layer - shallow_layer + (layers - deep_layer) / divisor
    shallow = round((layers * keep / vision_keep - shallow_layer) / rest * first)
    return shallow, round(shallow / divisor)
