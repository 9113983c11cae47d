"""GlimpsePrune: a learned glimpse token reads the image, a small predictor decides what the rest may see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.core.budget import Keep, Per, part
from foveate.core.method import BEFORE_LLM, Method, Stage
from foveate.core.probe import Probe
from foveate.core.selection import Choice, Selection
from foveate.core.view import ModelInfo, Tap, View
from foveate.errors import ConfigurationError
from foveate.glimpse import GlimpseModule, load_module
from foveate.glimpse.config import check_spread
from foveate.maths.diversity import max_min

CORNERS = {"tl": (0, 0), "tr": (0, -1), "bl": (-1, 0), "br": (-1, -1)}


@dataclass(frozen=True, eq=False)
class GlimpsePrune(Method):
    """Dynamic pruning by a glimpse token (arXiv 2508.01548).

    The token is appended behind the prompt, runs through layers 0..K with a learned vector added before each,
    and its attention to the image at the selected layers, together with features of the vision tower, gives one
    logit per visual token (the VIP). After layer K everything below the threshold is removed, from the caches of
    layers 0..K too, and so is the glimpse token. How much is kept depends on image and question, so there is no `keep`.

    Args:
        module: a `GlimpseModule`, or where to find one: a folder or Hub id in this library's format, or the folder
            of an official checkpoint.
        threshold: keep tokens whose probability is greater. None: the module's (0.5 as published); 0 keeps all.
        max_keep: at most this share (float; 1.0 is no limit) or number (int; 1 is one token) of the visual tokens.
            None: the module's.
        min_keep: at least this many. None: the module's.
        background: our addition: so many tokens (share or number, as `max_keep`) beside the module's, those that differ
            most (cosine of hidden states) from what is kept already: what the question needs that is not evidence.
            None: the module's (0 as published).
        spread: our addition: choose the module's tokens and the background together, one after the other: each time the
            token with the greatest product of worth and distance, where worth is its probability plus `spread` times
            the image's mean probability, and distance is 1 - cosine of projected features to the nearest one chosen.
            What a question needs and what covers the image then share the budget: where the module marks few tokens
            it has them all, where it marks many they are thinned out. A number from 0 (the module alone) on; 3 was
            chosen on validation questions (docs/glimpse_background.md). None: the module's (none as published: the
            likeliest, and the background beside them). It reads all tokens before the language model, so that in a
            `Compose` nothing can select before it.
        portion: with a spread, the part of the module's tokens (above the threshold, within cap and floor) that counts:
            `portion` times their number and the background are kept in all. None: the module's (1, all of them).
        anchors: corners (`"tl"`, `"tr"`, `"bl"`, `"br"`) that always stay, also beyond the cap.
        per: budget over all images of a prompt together (as published), per image, or per frame of a video.

    Raises:
        CheckpointError: no such module, or one that was made for another model.
    """

    name = "glimpse_prune"
    paper = "arXiv 2508.01548"
    adaptive = True
    verified = "official implementation (Qwen2.5-VL, LLaVA-1.5): predictor, selection, end to end"

    keep: None = field(init=False, default=None)
    module: GlimpseModule | str | Path
    threshold: float | None = None
    max_keep: float | int | None = None
    min_keep: int | None = None
    anchors: tuple[str, ...] | None = None
    per: Per = "prompt"
    background: float | int | None = None
    spread: float | None = None
    portion: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.module, GlimpseModule):
            object.__setattr__(self, "module", load_module(str(self.module)))
        unknown = set(self.corners) - set(CORNERS)
        if unknown:
            raise ConfigurationError(f"GlimpsePrune has no anchors {sorted(unknown)}; there are {list(CORNERS)}.")
        assert self.budget  # validates threshold, cap and floor
        if self.more != 0:
            Keep(cap=self.more, threshold=0.0)  # a share or a number
        check_spread(self.apart, self.counted)

    @classmethod
    def example(cls, keep: float, model: Any) -> GlimpsePrune:
        """A module with random weights for `model`, keeping at most `keep`: for tests and benchmarks of speed."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = GlimpseModule.for_model(model).eval()
        return cls(module, threshold=0.0 if keep == 1.0 else 0.3, max_keep=keep, min_keep=1)

    @property
    def glimpse(self) -> GlimpseModule:
        """The module."""
        assert isinstance(self.module, GlimpseModule)
        return self.module

    @property
    def corners(self) -> tuple[str, ...]:
        return self.glimpse.config.anchors if self.anchors is None else self.anchors

    @property
    def more(self) -> float | int:
        """Tokens of the background."""
        return self.glimpse.config.background if self.background is None else self.background

    @property
    def apart(self) -> float | None:
        """The spread."""
        return self.glimpse.config.spread if self.spread is None else self.spread

    @property
    def counted(self) -> float:
        """The portion."""
        return self.glimpse.config.portion if self.portion is None else self.portion

    @cached_property
    def budget(self) -> Keep:
        """Threshold, cap and floor."""
        config = self.glimpse.config
        return Keep(
            threshold=config.threshold if self.threshold is None else self.threshold,
            floor=config.min_keep if self.min_keep is None else self.min_keep,
            cap=config.max_keep if self.max_keep is None else self.max_keep,
            per=self.per,
        )

    @property
    def prunes(self) -> bool:
        return self.budget.threshold != 0 or not self.budget.caps_nothing or self.counted < 1

    def parameters(self) -> dict[str, Any]:
        budget = self.budget
        return {
            "module": self.glimpse.config.base_model or "unnamed",
            "threshold": budget.threshold,
            "max_keep": budget.cap,
            "min_keep": budget.floor,
            "anchors": self.corners,
            "per": self.per,
            **self._additions,
        }

    @property
    def _additions(self) -> dict[str, Any]:
        """Those of our additions that are in use."""
        found: dict[str, Any] = {"background": self.more} if self.more else {}
        if self.apart is not None:
            found |= {"spread": self.apart, "portion": self.counted}
        return found if self.proportional is None else found | {"proportional": self.proportional}

    def stages(self, info: ModelInfo) -> Sequence[Stage]:
        config = self.glimpse.config
        if (config.family, config.num_hidden_layers) != (info.family, info.layers):
            raise ConfigurationError(
                f"This glimpse module is for {config.family} with {config.num_hidden_layers} layers "
                f"({config.base_model or 'unnamed'}), the model is {info.family} with {info.layers}; train one with "
                "`foveate train glimpse`."
            )
        pruning = Stage(min(config.reduce_layer + 1, info.layers), compact_earlier=True)
        return (pruning,) if self.apart is None else (Stage(BEFORE_LLM), pruning)

    def taps(self, info: ModelInfo) -> Sequence[Tap]:
        return tuple(Tap("hidden", block) for block in self.glimpse.config.vision_blocks)

    def probe(self, info: ModelInfo) -> Probe | None:
        config = self.glimpse.config
        with torch.no_grad():
            vectors = self.glimpse.glimpse_vectors()
        return Probe(dict(zip(config.le_layers, vectors, strict=True)), config.selected_layers)

    def select(self, view: View) -> Choice:
        """The number of tokens depends on the predictor's probabilities."""
        if view.layer == BEFORE_LLM:  # `spread` compares what enters the language model
            view.memo["projected"] = view.hidden
            return Selection.everything(len(view), view.device)
        return self.decide(view)

    def decide(self, view: View) -> Choice:
        """What stays behind layer K."""
        return self._within(view, self.budget)

    def _within(self, view: View, budget: Keep) -> Tensor:
        """`[n]` bool: what the module's probabilities keep within a budget, and the corners."""
        chance = self.logits(view).float().sigmoid().nan_to_num(nan=0.0)
        mask = budget.choose(chance)
        if self.corners:
            mask = mask | self._anchored(view)
        if self.apart is not None:
            return self._spread_out(view, mask, chance, self.apart)
        return self._with_background(view, mask, chance) if self.more else mask

    def _with_background(self, view: View, mask: Tensor, chance: Tensor) -> Tensor:
        """`[n]` the mask and the tokens that differ most from those in it (from the likeliest one, if it is empty)."""
        n, share = len(view), self.more
        kept = mask.nonzero().squeeze(1)
        count = min(n, len(kept) + (part(share, n) if isinstance(share, float) else share))
        start = kept if len(kept) else chance.argmax().view(1)
        return mask.index_fill(0, max_min(view.hidden, max(count, len(start)), start, rough=True), True)

    def _spread_out(self, view: View, mask: Tensor, chance: Tensor, spread: float) -> Tensor:
        """`[n]` as many as a portion of the mask and the background, from the likeliest (or the corners) on."""
        n, marked, share = len(view), int(mask.sum()), self.more
        wanted = self.counted * marked / max(1, n)
        count = part(wanted + share, n, 1e-12) if isinstance(share, float) else part(wanted, n, 1e-12) + share
        start = self._anchored(view).nonzero().squeeze(1) if self.corners else chance.argmax().view(1)
        count = min(n, max(count, len(start) if marked else 0))
        features = view.memo["projected"].to(view.device)  # of the same tokens: nothing selects in between
        weight = chance + spread * chance.mean()
        return torch.zeros_like(mask).index_fill(0, max_min(features, count, start, weight), True)

    def logits(self, view: View) -> Tensor:
        """`[n]` the predictor's logits."""
        config = self.glimpse.config
        if next(self.glimpse.parameters()).device != view.device:
            self.glimpse.to(view.device)
        layers = [view.probe(layer, not config.use_attention_logits)[:, -1] for layer in config.selected_layers]
        attention = torch.cat(layers).T  # [n, layers * heads], layer-major
        index = view.index if len(view) < view.total else None  # another method may have pruned before
        return self.glimpse.score(attention, [view.tap(tap) for tap in self.taps(view.info)], list(view.grids), index)

    def _anchored(self, view: View) -> Tensor:
        """`[n]` the corners of every frame."""
        masks = []
        for grid in view.grids:
            mask = torch.zeros(grid, dtype=torch.bool)
            for corner in self.corners:
                row, column = CORNERS[corner]
                mask[:, row, column] = True
            masks.append(mask.flatten())
        return torch.cat(masks).to(view.device)[view.index]
