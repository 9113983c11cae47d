"""vLLM's vision towers are read while they run: what the method's taps name, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import (
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_gather,
    tensor_model_parallel_all_reduce,
)

from foveate.core.attention import attention_rows, received_attention
from foveate.core.grid import Grid
from foveate.core.view import Tap
from foveate.errors import MissingTapError
from foveate.families.base import Family
from foveate.families.parts import BLOCKS

ARGUMENTS = ("query", "key", "value", "cu_seqlens")


class Tower:
    """Readings of a vision tower.

    Args:
        tower: of vLLM.
        family: of the same model in transformers, which says what the taps mean.
        taps: to be read.

    Raises:
        MissingTapError: vLLM did not load a block that a tap names, or has no such part in it.
    """

    def __init__(self, tower: nn.Module, family: Family, taps: Sequence[Tap]) -> None:
        self._family, self._readings, self._grids = family, dict[Tap, Tensor](), list[Grid]()
        blocks = _blocks(tower)
        for tap in taps:
            number = family.block_of(tap)
            if number >= len(blocks):
                raise MissingTapError(f"{tap} reads vision block {number}, but vLLM loads {len(blocks)} only.")
            self._listen(tap, blocks[number])

    @contextmanager
    def reading(self, grids: Sequence[Grid]) -> Iterator[None]:
        """For one call of the tower with images (or tiles) of these grids."""
        self._grids = list(grids)
        self._readings.clear()
        try:
            yield
        finally:
            self._grids = []

    def values(self, grids: Sequence[Grid]) -> list[dict[Tap, Tensor]]:
        """What was read, for every image (or tile) a value per token."""
        found: list[dict[Tap, Tensor]] = [{} for _ in grids]
        for tap, read in self._readings.items():
            for own, value in zip(found, self._family.to_tokens(tap, read, grids), strict=True):
                own[tap] = value
        self._readings.clear()
        return found

    def _listen(self, tap: Tap, block: nn.Module) -> None:
        if tap.kind == "hidden":
            self._listen_to_output(tap, block)
            return
        attention = _attention(block)
        if tap.kind == "received":
            kernel = attention.attn
            kernel.register_forward_pre_hook(
                lambda module, args, kwargs: self._note(tap, self._received(tap, module, args, kwargs)),
                with_kwargs=True,
            )
            return
        projection, joined = _projection(attention)

        def keys(module: nn.Module, args: Any, output: Any) -> None:
            own = _flat(output)
            own = own.chunk(3, dim=-1)[1] if joined else own
            self._note(tap, _gathered(own) if _is_split(attention) else own)

        projection.register_forward_hook(keys)

    def _listen_to_output(self, tap: Tap, block: nn.Module) -> None:
        """Blocks that vLLM may compile call their `forward` themselves, past all hooks."""
        forward = block.forward

        def noting(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            self._note(tap, _flat(output))
            return output

        block.forward = noting

    def _note(self, tap: Tap, value: Tensor) -> None:
        if self._grids:
            self._readings[tap] = value

    @torch.no_grad()
    def _received(self, tap: Tap, kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """`[B, S]` attention that every patch of the call receives."""
        given = dict(zip(ARGUMENTS, args, strict=False)) | kwargs
        query, key = (_heads(given[name], kernel.head_size) for name in ARGUMENTS[:2])
        if self._family.has_class_token:
            token = -1 if self._family.class_token_last else 0
            rows = [
                attention_rows(q[:, token, None], k, kernel.scale, None)[:, 0] for q, k in zip(query, key, strict=True)
            ]
            found = torch.stack(rows).sum(1)
        else:
            bounds = given.get("cu_seqlens")
            lengths = [query.shape[2]] if bounds is None else bounds.diff().tolist()
            found = torch.stack(
                [received_attention(q, k, kernel.scale, lengths, tap.queries) for q, k in zip(query, key, strict=True)]
            )
        split = query.shape[1] < (self._family.info.tower_heads or query.shape[1])
        return tensor_model_parallel_all_reduce(found) if split else found


def _blocks(tower: nn.Module) -> nn.ModuleList:
    lists = [
        module
        for name, module in tower.named_modules()
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in BLOCKS
    ]
    return max(lists, key=len)


def _attention(block: nn.Module) -> Any:
    """The module of a block that projects and calls vLLM's attention operation."""
    for name in ("self_attn", "attn", "attention"):
        found = getattr(block, name, None)
        if isinstance(found, nn.Module) and hasattr(found, "attn"):
            return found
    raise MissingTapError(f"vLLM's {type(block).__name__} has no attention to read; use a method without taps.")


def _projection(attention: Any) -> tuple[nn.Module, bool]:
    """What projects the keys, and whether queries and values come with them."""
    for name, joined in (("k_proj", False), ("qkv_proj", True), ("qkv", True)):
        if isinstance(found := getattr(attention, name, None), nn.Module):
            return found, joined
    raise MissingTapError(f"vLLM's {type(attention).__name__} has no keys that can be read; use a method without taps.")


def _flat(output: Any) -> Tensor:
    """`[B, S, D]`, or `[S, D]` of `[S, 1, D]`, of a block or a linear layer."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found[:, 0] if found.dim() == 3 and found.shape[1] == 1 else found


def _heads(states: Tensor, size: int) -> Tensor:
    """`[B, H, S, d]` of `[B, S, H * d]` or `[B, S, H, d]`."""
    return states.view(*states.shape[:2], -1, size).transpose(1, 2)


def _is_split(attention: Any) -> bool:
    return get_tensor_model_parallel_world_size() > 1 and getattr(attention, "tp_size", 1) > 1


def _gathered(keys: Tensor) -> Tensor:
    return tensor_model_parallel_all_gather(keys)
