"""VidCom2: more tokens for frames that differ from the video, in each the tokens that stand out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.grid import frame_numbers
from foveate.core.method import Method
from foveate.core.selection import Choice, Selection
from foveate.core.view import View
from foveate.errors import ConfigurationError
from foveate.maths.shares import apportion
from foveate.maths.similarity import rank_within, unit

WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)
"""Variances of the Gaussian kernels that are summed."""


@dataclass(frozen=True)
class VidCom2(Method):
    """Video Compression Commander (arXiv 2505.14454) on projected features, of which the half with the least variance
    is read.

    The likeness of a token to the video (and to its frame) is the sum of five Gaussian kernels of its distance to the
    mean of all unit features (of those in the frame). A frame is the more unique the less its tokens are like the video
    on average; frames share the budget by `1 + p - mean(p)`, `p` the softmax of uniqueness over `temperature`. In each
    frame the tokens least like video and frame remain. An image is one frame.

    Args:
        keep: share of the tokens that remain, in (0, 1], or their number per video (published: 0.25, 0.15).
        temperature: of the softmax over frames.
        published: round the number of every frame, so that their sum is only about what was asked for. Off, what is
            missing goes to the frames with the largest remainders.
    """

    name = "vidcom2"
    paper = "arXiv 2505.14454"
    verified = "official code (LLaVA-OneVision): tokens kept identical with published=True"
    takes_prompt = False
    takes_frames = False

    temperature: float = 0.01
    published: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ConfigurationError(f"VidCom2(temperature={self.temperature}) must be positive.")

    def choose(self, view: View, count: int) -> Choice:
        frame = frame_numbers(view.grids, view.index).unique(return_inverse=True)[1]
        size = torch.bincount(frame)
        video, own = likeness(view.hidden, frame, len(size))
        unique = -torch.zeros(len(size), device=video.device).index_add_(0, frame, video) / size
        share = torch.softmax((unique - unique.amax()) / self.temperature, 0)
        scale = (1 + share - share.mean()) * (self.budget.ratio_of(len(view)) if self.published else count / len(view))
        wanted = torch.minimum(scale * size, size.float())
        numbers = wanted.round().long().clamp(min=1)
        if not self.published:
            numbers = torch.tensor(apportion(count, wanted.tolist(), size.tolist()), device=size.device)
        kept = rank_within(-(video + own), frame, len(size)) < numbers[frame]
        return Selection.from_mask(kept)


def likeness(hidden: Tensor, frame: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """`[n]` likeness of each token to the video, and to its frame."""
    x = hidden.float()
    steady = x.var(0, unbiased=False).topk(max(1, int(0.5 * x.shape[1])), largest=False).indices
    x = unit(x[:, steady])
    size = torch.bincount(frame, minlength=frames)[:, None]
    middle = torch.zeros(frames, x.shape[1], device=x.device).index_add_(0, frame, x) / size
    return kernels(x - x.mean(0)), kernels(x - middle[frame])


def kernels(difference: Tensor) -> Tensor:
    """`[n]` sum of Gaussian kernels of differences `[n, d]`."""
    squared = difference.square().sum(-1)
    return torch.stack([torch.exp(-squared / (2 * width)) for width in WIDTHS]).sum(0)
