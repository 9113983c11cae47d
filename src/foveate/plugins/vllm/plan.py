"""How many tokens of an image stay, and which: what the processor promises, and what the model then does."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from foveate.core.grid import Grid
from foveate.core.method import BEFORE_LLM, Method
from foveate.core.selection import Selection, resolve
from foveate.core.view import Tap, TensorSource, View
from foveate.errors import ConfigurationError, MissingTapError
from foveate.families.layout import ImageShape
from foveate.plugins.vllm.images import Images
from foveate.plugins.vllm.settings import Settings, check

Grids = tuple[Grid, ...]
TRIED: tuple[Grids, ...] = ((Grid(1, 7, 9),), (Grid(1, 4, 4),), (Grid(1, 5, 11),))
SHARES = (0.1, 1 / 3, 0.6)


class PruningPlan:
    """Settings for one model.

    Args:
        settings: what the operator chose.
        images: of the model.

    Raises:
        ConfigurationError: the method reads text, or keeps numbers of tokens that are not known beforehand.
        MissingTapError: it reads what this tower cannot give.
    """

    def __init__(self, settings: Settings, images: Images) -> None:
        self.settings, self.images, self.info = settings, images, images.family.info
        check(settings.method, self.info, images.one_axis)
        for tap in settings.method.taps(self.info):
            images.family.block_of(tap)
        self._rounds = self._check()
        self._tried = lru_cache(maxsize=4096)(self._trial_size)

    def kept(self, shape: ImageShape, keep: float | None) -> int:
        """How many tokens of an image enter the language model.

        Args:
            keep: share that the request asks for, None: the server's own.
        """
        method, entered = self.settings.chosen(keep), sum(grid.size for grid in shape.grids)
        if not method.prunes:
            return shape.size
        size = self._tried(keep, shape.grids) if self._rounds else _counted(self, method, entered)
        return len(shape.fixed) + size

    def select(self, shape: ImageShape, features: Tensor, taps: Mapping[Tap, Tensor], keep: float | None) -> Selection:
        """What stays of one image, of all its tokens.

        Args:
            features: `[size, D]`, as they enter the language model.
            taps: readings of the tower, `[N, ...]` each.
        """
        method, device = self.settings.chosen(keep), features.device
        if not method.prunes:
            return Selection.everything(shape.size, device)
        fixed = torch.tensor(shape.fixed, dtype=torch.long, device=device)
        free = torch.ones(shape.size, dtype=torch.bool, device=device).index_fill_(0, fixed, False).nonzero().squeeze(1)
        own = self._select(method, shape.grids, features[free], taps)
        return _among(own, free, fixed, shape.size)

    def _select(self, method: Method, grids: Grids, features: Tensor, taps: Mapping[Tap, Tensor]) -> Selection:
        total = len(features)
        source = TensorSource(features, None, None, None, None, taps)
        index = torch.arange(total, device=features.device)
        view = View(self.info, BEFORE_LLM, index, grids, total, total, source)
        return resolve([method.select(view)], [total], method.name)[0]

    def _trial(self, method: Method, grids: Grids, seed: int = 0) -> Selection:
        """What a method chooses of random features."""
        random = torch.Generator().manual_seed(seed)
        heads, total = max(1, self.info.tower_heads), sum(grid.size for grid in grids)
        taps = {
            tap: torch.rand(total, *(() if tap.kind == "received" else (2 * heads,)), generator=random)
            for tap in method.taps(self.info)
        }
        return self._select(method, grids, torch.randn(total, 8, generator=random), taps)

    def _trial_size(self, keep: float | None, grids: Grids) -> int:
        return len(self._trial(self.settings.chosen(keep), grids))

    def _check(self) -> bool:
        """Whether the method keeps other numbers than its budgets say, as one does that rounds to whole grids."""
        tried = [self.settings.chosen(keep) for keep in (None, *SHARES)]
        return any(self._is_off(method, grids) for method in tried if method.prunes for grids in TRIED)

    def _is_off(self, method: Method, grids: Grids) -> bool:
        try:
            sizes = {len(self._trial(method, grids, seed)) for seed in range(3)}
        except MissingTapError as error:
            raise ConfigurationError(
                f"{method.name} reads more than the image, which is all that vLLM has before the language model "
                f"({error}) Use a method that needs no text, such as visionzip or divprune, or `foveate serve`."
            ) from error
        if len(sizes) > 1:
            raise ConfigurationError(
                f"{method.name} keeps {min(sizes)} to {max(sizes)} tokens of images of one size, but vLLM must know "
                "the number before it encodes one; give the method a fixed budget."
            )
        return sizes != {_counted(self, method, grids[0].size)}


def _counted(plan: PruningPlan, method: Method, entered: int) -> int:
    return min(entered, method.counts(plan.info, entered)[-1])


def _among(own: Selection, free: Tensor, fixed: Tensor, size: int) -> Selection:
    """A selection of the tokens `free` as one of all, of which `fixed` stay too."""
    if not len(fixed):
        return own
    index, order = torch.cat([free[own.index], fixed]).sort()
    merge = own.merge
    if merge is not None:
        place = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
        merge = type(merge)(place[merge.target], merge.segment, free[merge.source], merge.weight)
    return Selection(size, index, merge)
