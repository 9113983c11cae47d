"""Where and how a model runs: device, dtype and attention as users write them, checked before weights are read."""

from __future__ import annotations

import importlib.util

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from foveate.errors import ConfigurationError, DeviceError, MissingExtraError

DTYPES = ("float32", "bfloat16", "float16", "float64")
FLASH = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
"""Attention implementations that are packages of their own."""


def choose_device(device: torch.device | str | None) -> str:
    """`device`, or the default: `cuda` if there is one.

    Raises:
        DeviceError: no such device here; the message lists what there is.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    name = str(device)
    if name == "auto":
        if importlib.util.find_spec("accelerate") is None:
            raise MissingExtraError("device 'auto' needs accelerate: pip install accelerate.")
        return name
    try:
        found = torch.device(name)
        if found.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DeviceError(f"There is no device {name!r} here ({reason}); there is {_devices()}.") from error
    return name


def _devices() -> str:
    names = ["cpu"]
    if torch.cuda.is_available():
        names += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return ", ".join(names)


def parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype | str | None:
    """A dtype from its name; `auto` and None stay.

    Raises:
        ConfigurationError: no dtype that a model computes in.
    """
    if dtype is None or dtype == "auto":
        return dtype
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ConfigurationError(f"dtype {name!r}: write {', '.join(DTYPES[:3])} or auto.")
    found: torch.dtype = getattr(torch, name)
    return found


def check_attention(name: str | None, device: str, dtype: torch.dtype | str | None) -> None:
    """Refuse an attention implementation that is unknown, not installed, or cannot run there.

    Raises:
        MissingExtraError: its package is not installed.
        ConfigurationError: unknown, or not for this device or dtype.
    """
    if name is None or "/" in name:  # a kernel of the Hub: transformers judges
        return
    known = sorted({"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()})
    if name not in known:
        raise ConfigurationError(f"There is no attention implementation {name!r}; there are {', '.join(known)}.")
    package = FLASH.get(name)
    if package is None:
        return
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(
            f"{name} needs the package {package}: pip install flash-attn (for an NVIDIA GPU), or use sdpa."
        )
    if device == "cpu" or dtype == torch.float32:
        where = "on a CPU" if device == "cpu" else "in float32"
        raise ConfigurationError(f"{name} does not run {where}; use sdpa, or a GPU with bfloat16.")
