"""The frozen base model divided among processes, so that none holds all of its weights on its device (FSDP2).

Only decoder layers are divided: they are most of the weights, all processes run the same ones in the same order, and
each is gathered when it is called, whoever calls it. What learns (a glimpse module, an adapter) is put in afterwards,
stays whole in every process and has its gradients averaged as always, so that checkpoints hold nothing of the base.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from foveate.engine.capture import AttentionCall
from foveate.errors import ConfigurationError
from foveate.families import adapt
from foveate.training.processes import world


def mesh_of(device: torch.device) -> DeviceMesh:
    """All processes. They must call this together.

    Raises:
        ConfigurationError: there is one process only.
    """
    _, count = world()
    if count == 1:
        raise ConfigurationError(
            "the base model cannot be divided in one process; start several (torchrun, accelerate launch), or leave "
            "--shard out"
        )
    return init_device_mesh(device.type, (count,))


def shard(base: nn.Module, mesh: DeviceMesh) -> None:
    """Leave in this process its part of every decoder layer, on its device; processes need not do this at once."""
    parts = adapt(base).parts
    for layer in parts.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    inside = {id(weight) for weight in parts.layers.parameters()}
    other = {weight for weight in parts.text.parameters() if id(weight) not in inside}
    fully_shard(parts.text, mesh=mesh, reshard_after_forward=True, ignored_params=other)
    managed: Any = base
    managed._is_fsdp_managed_module = True  # then `generate` goes on in all processes until the last is done


def warm_up(base: nn.Module) -> None:
    """Gather every layer once: what is first gathered in inference mode cannot be trained through later."""
    for layer in adapt(base).parts.layers:
        if isinstance(layer, FSDPModule):
            layer.unshard()
            layer.reshard()


def place(model: nn.Module, device: torch.device) -> None:
    """Move what is not divided to a device."""
    for tensor in (*model.parameters(), *model.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device)


def leave_alone(model: nn.Module, learns: Callable[[str, torch.Tensor], bool]) -> None:
    """Keep what does not learn out of DDP: all processes have loaded the same, and what is divided cannot be sent."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    ignored: Any = [name for name, tensor in tensors if not learns(name, tensor)]
    model._ddp_params_and_buffers_to_ignore = ignored


def is_sharded(base: nn.Module) -> bool:
    """Whether `shard` was called."""
    return any(isinstance(part, FSDPModule) for part in base.modules())


def left(layer: nn.Module) -> None:
    """Give back the gathered weights of a layer that was entered, but not run."""
    if isinstance(layer, FSDPModule):
        layer.reshard()


def _gather(layer: FSDPModule) -> None:
    layer.unshard()


def listening(layer: nn.Module, listener: Callable[[AttentionCall], None]) -> Callable[[AttentionCall], None]:
    """`listener` to the attention of a layer, whose weights are gathered when gradients come back on this way.

    They are otherwise gathered when gradients reach the layer's output, which no loss may have looked at.
    """
    if not isinstance(layer, FSDPModule):
        return listener

    def heard(call: AttentionCall) -> None:
        for tensor in (call.q, call.k):
            if tensor.requires_grad:
                tensor.register_hook(lambda _: _gather(layer))
        listener(call)

    return heard


def check_not_wrapped(arguments: Any) -> None:
    """Refuse to let another library divide the model: it would write the frozen base into every checkpoint.

    Raises:
        ConfigurationError: naming what was asked for, and what to use instead.
    """
    launched = {"FSDP": "ACCELERATE_USE_FSDP", "DeepSpeed": "ACCELERATE_USE_DEEPSPEED"}
    asked = [name for name, variable in launched.items() if os.environ.get(variable, "false").lower() == "true"]
    asked += [name for name, given in (("FSDP", arguments.fsdp), ("DeepSpeed", arguments.deepspeed)) if given]
    if asked:
        raise ConfigurationError(
            f"{asked[0]} divides what learns, here a small module, and writes the frozen base into every checkpoint; "
            "give --shard instead, which divides the base, with plain processes (torchrun, accelerate launch)"
        )
