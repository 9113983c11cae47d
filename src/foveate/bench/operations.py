"""What a call asks of torch: operations, and waits for the device. Counts do not depend on the machine."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TO_HOST = {"cpu", "tolist", "item", "__bool__", "__int__", "__float__", "__index__", "equal"}
"""What a caller of torch asks for and can only be told once the device is done."""
OF_UNKNOWN_SIZE = {"nonzero", "unique", "masked_select", "argwhere"}
"""Functions whose result has as many entries as its values say, so that its size must be known first."""
FACTORIES = {"arange", "tensor", "zeros", "ones", "full", "empty", "as_tensor", "from_numpy"}
"""Functions that make a tensor on the host unless they are told a device."""

VIEWS = {torch.ops.aten._unsafe_view, torch.ops.aten.lift_fresh}
"""Views whose schema does not say so."""


@dataclass
class Counts:
    """What was counted.

    Attributes:
        operations: those that reach the dispatcher and compute, copy or fill.
        views: those that only look at a tensor in another way: nothing is launched for them.
        waits: calls for which the host would wait for a device with a queue of its own.
    """

    operations: int = 0
    views: int = 0
    waits: int = 0


@contextmanager
def counting() -> Iterator[Counts]:
    """Count what happens inside the block, on any device.

    Where host and device are the same, nobody waits; then everything is taken for the device's but what was copied to
    the host inside the block (`tensor.cpu()`), and what was computed from nothing else.
    """
    counts, host = Counts(), _Host()
    with _Calls(counts, host), _Operations(counts, host):
        yield counts


class _Host:
    """Tensors that a model on another device would find on the host."""

    def __init__(self) -> None:
        self._known: dict[int, weakref.ref[Tensor]] = {}

    def add(self, tensor: Tensor) -> None:
        self._known[id(tensor)] = weakref.ref(tensor)

    def remove(self, tensor: Tensor) -> None:
        self._known.pop(id(tensor), None)

    def __contains__(self, tensor: Tensor) -> bool:
        known = self._known.get(id(tensor))
        return known is not None and known() is tensor


class _Calls(TorchFunctionMode):
    """Calls of torch as they are made, before they turn into operations: waits, and ways between host and device."""

    def __init__(self, counts: Counts, host: _Host) -> None:
        super().__init__()
        self.counts, self.host = counts, host

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        first = args[0] if args and isinstance(args[0], Tensor) else None
        on_device = first is not None and first not in self.host
        waits = on_device and _waits(name, args, kwargs)
        self.counts.waits += waits
        found: Any = func(*args, **kwargs)
        if name in FACTORIES and kwargs.get("device") is None:
            self.host.add(found)
        elif waits and name in ("cpu", "to"):
            found = first.clone() if first is not None and found is first else found
            self.host.add(found)
        elif name == "to" and not on_device and _device(args, kwargs) is not None:
            found = first.clone() if first is not None and found is first else found
            self.host.remove(found)
        return found


def _device(args: Any, kwargs: Any) -> Any:
    """Where `Tensor.to` is asked to go, None if nowhere else."""
    places = [value for value in (*args[1:], kwargs.get("device")) if isinstance(value, (str, torch.device))]
    return places[0] if places else None


def _waits(name: str, args: Any, kwargs: Any) -> bool:
    if name in ("__getitem__", "__setitem__"):
        places = args[1] if isinstance(args[1], tuple) else (args[1],)
        masked = any(isinstance(place, Tensor) and place.dtype == torch.bool for place in places)
        return masked and (name == "__getitem__" or isinstance(args[2], Tensor))
    if name == "repeat_interleave":
        return any(isinstance(n, Tensor) for n in (*args[1:], *kwargs.values())) and not kwargs.get("output_size")
    if name == "to":  # a device that code took from another tensor is the model's
        return _device(args, kwargs) == "cpu" and isinstance(_device(args, kwargs), str)
    return name in TO_HOST or name in OF_UNKNOWN_SIZE


class _Operations(TorchDispatchMode):
    """Operations, and what they compute from host tensors alone."""

    def __init__(self, counts: Counts, host: _Host) -> None:
        super().__init__()
        self.counts, self.host = counts, host

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.is_view or func.overloadpacket in VIEWS:
            self.counts.views += 1
        else:
            self.counts.operations += 1
        found = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if given and all(tensor in self.host for tensor in given):
            for tensor in tree_leaves(found):
                if isinstance(tensor, Tensor):
                    self.host.add(tensor)
        return found
