"""Loss terms of GlimpsePrune+'s reinforcement-learning stage (group-relative policy optimisation).

Source: GlimpsePrune, https://github.com/HVision-NKU/GlimpsePrune. One update per batch of rollouts, so there
is no clipping and no importance ratio; terms average over the tokens of a completion first, then over
completions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def group_advantages(scores: Tensor, eps: float = 1e-4) -> Tensor:
    """Advantages [B] of one group's completions from their rewards [rewards, B], which are summed first.

    `(r - mean) / (std + eps)` with the unbiased standard deviation over the group.
    """
    total = scores.float().sum(0)
    return (total - total.mean()) / (total.std() + eps)


def policy_loss(logps: Sequence[Tensor], advantages: Tensor) -> Tensor:
    """Policy gradient loss. `logps[b]` [L_b]: log-probabilities of completion b's tokens under the policy.

    The value is `-mean(advantages)`; the gradient for a token is `-A_b / (L_b * B)`.
    """
    terms = [-(lp - lp.detach()).exp().mean() * a for lp, a in zip(logps, advantages, strict=True)]
    return torch.stack(terms).mean()


def kl_loss(logps: Sequence[Tensor], reference_logps: Sequence[Tensor]) -> Tensor:
    """Estimate `exp(d) - d - 1`, `d = reference - policy`, of the KL divergence to the reference model."""
    terms = []
    for logp, reference in zip(logps, reference_logps, strict=True):
        d = reference - logp
        terms.append((d.exp() - d - 1).mean())
    return torch.stack(terms).mean()


def completion_mask(ids: Tensor, eos_token_id: int) -> Tensor:
    """True up to and including each row's first end-of-sequence token: bool [B, L]."""
    ends = ids == eos_token_id
    return ends.cumsum(-1) - ends.long() == 0


def left_pad_index(mask: Tensor, max_length: int | None = None) -> tuple[Tensor, Tensor]:
    """How to move a batch's valid tokens to the right end of their rows.

    Args:
        mask: [B, L], 1 on valid tokens, anywhere in the row.
        max_length: rows are cut at their end (their last tokens go) to this many tokens.

    Returns:
        index [B, L'] into the L tokens, and valid, bool [B, L']; L' is L or `max_length`, whichever is less.
    """
    mask = mask.bool()
    length = mask.shape[1] if max_length is None else min(max_length, mask.shape[1])
    valid_first = torch.argsort(~mask, dim=1, stable=True)
    counts = mask.sum(1).clamp(max=length)
    shifted = torch.arange(length, device=mask.device) - (length - counts)[:, None]
    return valid_first.gather(1, shifted.clamp(min=0)), shifted >= 0


def left_pad(x: Tensor, index: Tensor, valid: Tensor) -> Tensor:
    """Apply `left_pad_index` to `x` [B, L, ...]; padding is 0."""
    shape = index.shape + (1,) * (x.dim() - 2)
    moved = x.gather(1, index.view(shape).expand(*index.shape, *x.shape[2:]))
    return torch.where(valid.view(shape), moved, 0)
