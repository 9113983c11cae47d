"""Muon for hidden matrices, AdamW for everything else, data parallel over processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

Named = list[tuple[str, Tensor]]
_ADAM_ONLY = ("embed", "lm_head", "heads", "patch")
_DECAY = 0.01


def cosine(progress: float, warm: float = 0.02, floor: float = 0.02) -> float:
    """Learning-rate factor at `progress` in [0, 1]: linear warm-up, then a cosine down to `floor`."""
    if progress < warm:
        return progress / warm
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warm) / (1 - warm))))


class MuonAdamW:
    """`torch.optim.Muon` and `torch.optim.AdamW` under one learning-rate factor.

    Args:
        named: parameters; 2-D ones go to Muon unless they are embeddings or heads.
        lr, muon_lr: peak rates.
        scale: factor on the rates of a parameter, by name.
    """

    def __init__(self, named: Named, lr: float, muon_lr: float, scale: Callable[[str], float]) -> None:
        hidden = [p.ndim == 2 and not any(part in name for part in _ADAM_ONLY) for name, p in named]
        muon = [item for item, is_hidden in zip(named, hidden, strict=True) if is_hidden]
        adam = [item for item, is_hidden in zip(named, hidden, strict=True) if not is_hidden]
        self.parts: list[torch.optim.Optimizer] = []
        if muon:
            self.parts.append(torch.optim.Muon(_groups(muon, muon_lr, scale)))
        if adam:
            self.parts.append(torch.optim.AdamW(_groups(adam, lr, scale), betas=(0.9, 0.98)))

    def step(self, factor: float) -> None:
        """Updates every parameter that has a gradient."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = group["peak"] * factor
            part.step()

    def state_dict(self) -> list[dict[str, Any]]:
        """Everything that a run needs to go on, as tensors, numbers and lists."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Takes what `state_dict` gave for the same parameters."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def _groups(named: Named, peak: float, scale: Callable[[str], float]) -> list[dict[str, Any]]:
    """Parameter groups of one peak rate each; vectors do not decay."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, p in named:
        groups.setdefault((peak * scale(name), _DECAY if p.ndim >= 2 else 0.0), []).append(p)
    return [
        {"params": params, "lr": rate, "peak": rate, "weight_decay": decay} for (rate, decay), params in groups.items()
    ]


def share_gradients(parameters: Iterable[Tensor], limit: float) -> float:
    """Averages gradients over processes, clips their common norm to `limit`, returns the norm before."""
    trained = [p for p in parameters if p.requires_grad]
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).reshape(-1) for p in trained])
    if dist.is_initialized():
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
    for p, grad in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
        p.grad = grad.view_as(p)
    return nn.utils.clip_grad_norm_(trained, limit).item()
