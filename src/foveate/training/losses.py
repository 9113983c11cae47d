"""Losses of the supervised stage: where the evidence is (mask loss) and what the answer is (language loss).

Source: GlimpsePrune, https://github.com/HVision-NKU/GlimpsePrune. Reductions are its own: mask losses average
over samples, not over the tokens of the batch, and sum over the VIP's output rows.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = -100
"""Label of a position that no loss looks at."""


def dice(logits: Tensor, mask: Tensor) -> Tensor:
    """Soft Dice loss of one sample's logits [..., N] against a 0/1 mask [N]: [...]."""
    p, m = logits.float().sigmoid(), mask.float()
    return 1 - (2 * (p * m).sum(-1) + 1e-6) / (p.sum(-1) + m.sum() + 1e-6)


def bce(logits: Tensor, mask: Tensor) -> Tensor:
    """Token mean of the binary cross entropy of one sample's logits [..., N] against a mask [N]: [...]."""
    target = mask.float().expand_as(logits)
    return F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none").mean(-1)


def dice_loss(logits: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """Dice of a ragged batch: `logits[b]` is [rows, N_b], `masks[b]` [h, w] or [N_b] in raster order."""
    return _reduce(dice, logits, masks)


def bce_loss(logits: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """Binary cross entropy of a ragged batch; shapes as in `dice_loss`."""
    return _reduce(bce, logits, masks)


def mask_loss(
    logits: Sequence[Tensor], masks: Sequence[Tensor], dice_weight: float = 1.0, bce_weight: float = 0.1
) -> Tensor:
    """Weighted sum of `dice_loss` and `bce_loss`; the default weights are the published ones."""
    return dice_weight * dice_loss(logits, masks) + bce_weight * bce_loss(logits, masks)


def language_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Token mean of the cross entropy of logits [..., V] for labels [...]; a label of -100 is skipped."""
    return F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORE)


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Token mean of KL(teacher || student) for logits [tokens, V], in nats."""
    log_p, log_q = teacher.float().log_softmax(-1), student.float().log_softmax(-1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def keep_rate_loss(logits: Sequence[Tensor], target: float) -> Tensor:
    """Mean over prompts of `|expected kept fraction - target|`; `logits[b]` is [N_b].

    Linear and per prompt: a question that needs the whole image may pay for it, and the price of a token does not
    depend on how many others are kept. From below too: most answers are known without the image's last tokens, so that
    distillation alone leaves fewer than the target allows, too few for the other questions.
    """
    return (expected_share(logits) - target).abs().mean()


def expected_share(logits: Sequence[Tensor]) -> Tensor:
    """`[B]` share of its tokens that each prompt keeps if every token is kept with its probability; `logits[b]` is
    [N_b]."""
    return torch.stack([row.float().sigmoid().mean() for row in logits])


def confusion(logits: Sequence[Tensor], masks: Sequence[Tensor], threshold: float = 0.5) -> Tensor:
    """(true positives, false positives, false negatives, true negatives) of the last row: int64 [4]."""
    kept = torch.cat([sample[-1].sigmoid() > threshold for sample in logits])
    wanted = torch.cat([mask.flatten().bool() for mask in masks])
    return torch.stack([(kept & wanted).sum(), (kept & ~wanted).sum(), (~kept & wanted).sum(), (~kept & ~wanted).sum()])


def _reduce(loss: Callable[[Tensor, Tensor], Tensor], logits: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """Mean over samples, sum over output rows."""
    per_sample = [loss(x, mask.flatten()) for x, mask in zip(logits, masks, strict=True)]
    return torch.stack(per_sample).mean(0).sum()
