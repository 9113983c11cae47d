"""A reward for looking where the answer stands. It makes attention tidier than a model's own: see the card."""

from __future__ import annotations

import torch
from torch import Tensor

SHARE = 1 / 8  # of the attention that each counted thing should get: the sum then tells how many there are


def attention_loss(
    seen: Tensor, visual: Tensor, evidence: Tensor, places: Tensor, counting: Tensor, answers: Tensor
) -> Tensor:
    """Mean penalty over the positions that predict an answer token.

    Reading: minus the log of the attention on all evidence. Counting: cross entropy with a target that gives
    every counted thing the same share and leaves the rest on the first token, so that the number can be read
    off the mixture.

    Args:
        seen: attention to the prefix, mean over the chosen heads `[B, K, Lq, Lp]`.
        visual: image tokens of the prefix, bool `[Lp]`.
        evidence: `[B, K, S, V]`, one row of cells for each place.
        places: `[B, K]`, how many of the S rows are used.
        counting: bool `[B, K]`.
        answers: positions that predict an answer token, bool `[B, K, Lq]`.
    """
    seen = seen.float()
    on_place = torch.einsum("bkqv,bksv->bkqs", seen[..., visual], evidence)
    anywhere = (evidence.sum(2) > 0).float()
    on_any = torch.einsum("bkqv,bkv->bkq", seen[..., visual], anywhere)
    reading = -(on_any + 1e-4).log()
    used = torch.arange(evidence.shape[2]) < places[..., None]
    per_place = (-(on_place + 1e-4).log() * used[:, :, None]).sum(-1) * SHARE
    rest = (1 - SHARE * places)[..., None]
    counted = per_place - rest * (seen[..., 0] + 1e-4).log()
    loss = torch.where(counting[..., None], counted, reading)
    judged = answers & (counting | (places > 0))[..., None]
    return loss[judged].mean()
