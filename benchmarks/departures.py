"""Methods that depart from the published code in one thing: what this library did before it followed it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from foveate.core.budget import part, top
from foveate.core.method import Choice
from foveate.core.selection import Merge, Selection
from foveate.core.view import ModelInfo, Tap, View
from foveate.maths.bipartite import match
from foveate.maths.diversity import greedy_map
from foveate.maths.similarity import complement, merge_into, nearest, rank_within, unit
from foveate.methods import CDPruner, PruMerge, SparseVLM, ToMe, VisionZip, VisPruner, VScan
from foveate.methods.cdpruner import relevance


def heads_joined(view: View) -> View:
    """The view of a tower of one head: keys are compared concatenated, not averaged."""
    return replace(view, info=replace(view.info, tower_heads=0))


class VisionZipJoinedKeys(VisionZip):
    """Contextual groups by keys with heads concatenated."""

    def choose(self, view: View, count: int) -> Choice:
        return super().choose(heads_joined(view), count)


class ToMeJoinedKeys(ToMe):
    """Pairs by keys with heads concatenated."""

    def choose(self, view: View, count: int) -> Choice:
        return super().choose(heads_joined(view), count)


class CDPrunerBeforeProjector(CDPruner):
    """Cosines between features of the vision tower."""

    def taps(self, info: ModelInfo) -> list[Tap]:
        return [Tap("hidden")]

    def choose(self, view: View, count: int) -> Choice:
        return greedy_map(view.tap(Tap("hidden")), relevance(view.hidden, view.text), count).sort().values


class VisPrunerByAttention(VisPruner):
    """Tokens left stay in order of attention from round to round."""

    def _distinct(self, tokens: Tensor, features: Tensor, count: int) -> Tensor:
        step = max(self.step, -(-(len(tokens) - count) // 64))
        while (surplus := len(tokens) - count) > 0:
            if len(tokens) == 1:
                return tokens[:0]
            first, _ = match(features[tokens], min(step, surplus, len(tokens) // 2))
            tokens = tokens[complement(len(tokens), first)]
        return tokens


class PruMergeAmongDropped(PruMerge):
    """Neighbours among the dropped tokens only, attention divided by its sum over the patches."""

    def _merge(self, view: View, attention: Tensor, kept: Tensor) -> Selection:
        keys, n, m = unit(view.tap(Tap("keys", self.block))), len(view), len(kept)
        rest, share = complement(n, kept), attention / attention.sum()
        near = rest[(keys[kept] @ keys[rest].T).topk(min(self.neighbours, n - m)).indices]
        segment = torch.arange(m, device=keys.device)
        members = torch.cat([segment, segment.repeat_interleave(near.shape[1])])
        weights = torch.cat([torch.ones(m, device=keys.device), share[near.flatten()]])
        return Selection(n, kept, Merge(segment, members, torch.cat([kept, near.flatten()]), weights))


class VScanGlobalFirst(VScan):
    """The global scan chooses first, the local one among the rest, window by window in turn."""

    def _scan(self, view: View, count: int) -> Selection:
        n, few = len(view), count - part(self.local, count)
        overall = top(view.tap(Tap("received", queries=self.queries)), few)
        rest = complement(n, overall)
        frame, row, col = view.positions()[rest].unbind(1)
        down, across = min(self.windows, view.grid.h), min(self.windows, view.grid.w)
        window = (frame * down + row * down // view.grid.h) * across + col * across // view.grid.w
        score = view.tap(self._shallow(view.info))[rest]
        order = score.argsort(descending=True, stable=True)
        order = order[rank_within(score, window, view.grid.t * down * across)[order].argsort(stable=True)]
        chosen = torch.cat([overall, rest[order[: count - few]]]).sort().values
        dropped = complement(n, chosen)
        features = unit(view.hidden)
        return merge_into(n, chosen, chosen, dropped, nearest(features[dropped], features[chosen])[1])


class SparseVLMOneLess(SparseVLM):
    """Recycles one token less."""

    def pool(self, dropped: int) -> int:
        return max(0, super().pool(dropped) - 1)
