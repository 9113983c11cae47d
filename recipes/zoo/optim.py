"""Muon for hidden matrices, AdamW for everything else, data parallel over processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Named = list[tuple[str, Tensor]]
_ADAM_ONLY = ("embed", "lm_head", "heads", "patch")


def cosine(progress: float, warm: float = 0.02, floor: float = 0.02) -> float:
    """Learning-rate factor at `progress` in [0, 1]: linear warm-up, then a cosine down to `floor`."""
    if progress < warm:
        return progress / warm
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warm) / (1 - warm))))


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration of Muon (Jordan et al., 2024) on `[N, rows, columns]`."""
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
    return (x.mT if tall else x).float()


class MuonAdamW:
    """Both optimisers under one learning-rate factor.

    Args:
        named: parameters; 2-D ones go to Muon unless they are embeddings or heads.
        lr, muon_lr: peak rates.
        scale: factor on the rates of a parameter, by name.
    """

    def __init__(
        self, named: Named, lr: float, muon_lr: float, scale: Callable[[str], float], decay: float = 0.01
    ) -> None:
        hidden = [p.ndim == 2 and not any(part in name for part in _ADAM_ONLY) for name, p in named]
        self.muon = [item for item, is_hidden in zip(named, hidden, strict=True) if is_hidden]
        self.adam = [item for item, is_hidden in zip(named, hidden, strict=True) if not is_hidden]
        self.lr, self.muon_lr, self.scale, self.decay = lr, muon_lr, scale, decay
        self.state: dict[str, Any] = {}

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Updates every parameter that has a gradient."""
        for name, p in self.adam:
            if p.grad is not None:
                self._adam(name, p, p.grad, self.lr * factor * self.scale(name))
        groups: dict[tuple[int, ...], Named] = {}
        for name, p in self.muon:
            if p.grad is not None:
                groups.setdefault(tuple(p.shape), []).append((name, p))
        for group in groups.values():
            self._muon(group, factor)

    def _adam(self, name: str, p: Tensor, grad: Tensor, lr: float, b1: float = 0.9, b2: float = 0.98) -> None:
        if name not in self.state:
            self.state[name] = [0, torch.zeros_like(p), torch.zeros_like(p)]
        state = self.state[name]
        state[0] += 1
        state[1].lerp_(grad, 1 - b1)
        state[2].lerp_(grad**2, 1 - b2)
        if p.ndim >= 2:
            p.mul_(1 - lr * self.decay)
        spread = (state[2] / (1 - b2 ** state[0])).sqrt() + 1e-8
        p.addcdiv_(state[1] / (1 - b1 ** state[0]), spread, value=-lr)

    def _muon(self, group: Named, factor: float) -> None:
        nudges = []
        for name, p in group:
            assert p.grad is not None
            momentum = self.state.setdefault(name, torch.zeros_like(p))
            momentum.mul_(0.95).add_(p.grad)
            nudges.append(p.grad + 0.95 * momentum)
        gain = math.sqrt(max(1.0, group[0][1].shape[0] / group[0][1].shape[1]))
        for (name, p), update in zip(group, _orthogonalise_shared(torch.stack(nudges)), strict=True):
            lr = self.muon_lr * factor * self.scale(name)
            p.mul_(1 - lr * self.decay).add_(update.to(p.dtype), alpha=-lr * gain)


def _orthogonalise_shared(stack: Tensor) -> Tensor:
    """`orthogonalise`, every process doing its share of the stack."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    if world == 1 or len(stack) < world:
        return orthogonalise(stack)
    share = math.ceil(len(stack) / world)
    padded = torch.cat([stack, stack[:1].expand(share * world - len(stack), -1, -1)])
    mine = orthogonalise(padded[dist.get_rank() * share :][:share]).bfloat16().contiguous()
    parts = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(parts, mine)
    return torch.cat(parts)[: len(stack)].float()


def share_gradients(parameters: Iterable[Tensor], limit: float) -> float:
    """Averages gradients over processes, clips their common norm to `limit`, returns the norm before."""
    own = [p for p in parameters if p.requires_grad]
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).reshape(-1) for p in own])
    if dist.is_initialized():
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
    norm = flat.norm().item()
    if norm > limit:
        flat *= limit / norm
    for p, grad in zip(own, flat.split([p.numel() for p in own]), strict=True):
        p.grad = grad.view_as(p)
    return norm
