"""EVS: what has changed since the frame before."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.core.method import Method
from foveate.core.selection import Choice, Selection
from foveate.core.view import View


@dataclass(frozen=True)
class EVS(Method):
    """Efficient Video Sampling (arXiv 2510.14624): keeps the first frame, and of the others the tokens that differ most
    (cosine of projected features) from the token at the same place in the frame before.

    Needs no attention and no text. With less than a frame to keep, as on an image, the first frame is thinned evenly;
    the published code keeps it whole whatever the budget.

    Args:
        keep: share of the tokens that remain, in (0, 1], or their number per video.
        published: never keep less than the first frame.
    """

    name = "evs"
    paper = "arXiv 2510.14624"
    verified = "transformers' compute_retention_mask: masks identical"
    takes_prompt = False
    takes_frames = False

    published: bool = False

    def select(self, view: View) -> Choice:
        count = self.counts(view.info, view.entered)[0]
        if self.published:
            count = max(count, int((before(view) < 0).sum()))
        return Selection.everything(len(view), view.device) if count >= len(view) else self.choose(view, count)

    def choose(self, view: View, count: int) -> Choice:
        hidden, past = view.hidden, before(view)
        new = (past < 0).nonzero().squeeze(1)
        if count < len(new):
            return new[torch.arange(count, device=new.device) * len(new) // count]
        change = 1 - F.cosine_similarity(hidden, hidden[past.clamp(min=0)], dim=-1)
        change = change.index_fill(0, new, float("inf"))
        return change.argsort(descending=True, stable=True)[:count].sort().values


def before(view: View) -> Tensor:
    """`[n]` which token stands at the same place one frame before, -1 where there is none (any more)."""
    last = torch.full((view.total,), -1, device=view.device)
    last[view.index] = torch.arange(len(view), device=view.device)
    found, start = torch.full_like(last, -1), 0
    for number, grid in enumerate(view.grids):
        own, frame = slice(start, start + grid.size), grid.h * grid.w
        found[own][frame:] = last[own][: grid.size - frame]
        if number and view.grids[number - 1][1:] == grid[1:]:
            found[own][:frame] = last[start - frame : start]
        start += grid.size
    return found[view.index]
