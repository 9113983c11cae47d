"""Small tensors read on the host, once each."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor

_REMEMBERED = 32
_known: dict[int, tuple[weakref.ref[Tensor], int, list[Any]]] = {}


def listed(tensor: Tensor) -> list[Any]:
    """`tensor.tolist()`; the same tensor, unchanged, is not waited for again.

    A forward pass asks several times for the grids of its images, which lie on the model's device.
    """
    if tensor.is_inference():  # these do not tell whether they were changed
        return list(tensor.tolist())
    known = _known.get(id(tensor))
    if known is not None and known[0]() is tensor and known[1] == tensor._version:
        return known[2]
    while len(_known) >= _REMEMBERED:
        _known.pop(next(iter(_known)), None)
    found: list[Any] = tensor.tolist()
    _known[id(tensor)] = (weakref.ref(tensor), tensor._version, found)
    return found
