"""Load a model with its processor, with or without torchvision."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from foveate import zoo
from foveate.errors import CheckpointError, DeviceError, FoveateError, MissingExtraError, UnsupportedModelError
from foveate.families import adapt
from foveate.families.refusals import type_refusal
from foveate.inference.placement import check_attention, choose_device, parse_dtype
from foveate.inference.processor import load_processor

CAUSAL = ("phi4_multimodal",)
"""Types that read images, but that transformers counts among plain language models."""


def load(
    path_or_id: str | Path,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    attn_implementation: str | None = None,
) -> tuple[Any, Any]:
    """Model (in evaluation mode) and processor of a checkpoint.

    Args:
        path_or_id: folder, Hub id, or a model of the zoo (`foveate/scenes-qwen2_5_vl`).
        dtype: default is the checkpoint's on a GPU, float32 on a CPU.
        device: default is `cuda` if there is one. `"auto"` spreads the model over all devices (needs accelerate).
        attn_implementation: `"sdpa"` (default), `"eager"`, `"flash_attention_2"`, ...

    Raises:
        CheckpointError: nothing there, or unreadable.
        UnsupportedModelError: a model of another family.
        DeviceError: no such device, or too little memory on it.
        ConfigurationError: an unknown dtype or attention implementation.
        MissingExtraError: a package is missing.
    """
    where, wanted = _placement(dtype, device, attn_implementation)
    source = _source(str(path_or_id))
    more = {"device_map": "auto"} if where == "auto" else {}
    try:
        kind = _check_family(source, AutoConfig.from_pretrained(source))
        _check_weights(source)
        model = kind.from_pretrained(source, dtype=wanted, attn_implementation=attn_implementation, **more)
        model = model.eval() if more else model.eval().to(where)
        return model, load_processor(source, adapt(model))
    except FoveateError:
        raise
    except torch.OutOfMemoryError as error:
        raise _too_large(source, where, error) from error
    except ImportError as error:
        raise MissingExtraError(f"Loading {source} needs a package that is not installed: {error}") from error
    except Exception as error:  # transformers, safetensors and the Hub each raise their own
        raise _unreadable(source, error) from error


def read_config(path_or_id: str) -> Any:
    """The configuration of a checkpoint, without its weights.

    Args:
        path_or_id: as in `load`.

    Raises:
        CheckpointError: nothing there, or unreadable.
    """
    source = _source(path_or_id)
    try:
        return AutoConfig.from_pretrained(source)
    except Exception as error:
        raise _unreadable(source, error) from error


def _too_large(source: str, where: str, error: BaseException) -> DeviceError:
    return DeviceError(
        f"{source} does not fit into the memory of {where}: {_first_line(error)} Use --dtype bfloat16 (dtype=), "
        "several devices (device 'auto') or a smaller model."
    )


def _placement(dtype: Any, device: Any, attention: str | None) -> tuple[str, torch.dtype | str]:
    """The device to load onto and the dtype to load as, checked with the attention implementation."""
    where = choose_device(device)
    wanted = parse_dtype(dtype)
    if wanted is None:
        wanted = torch.float32 if where.startswith("cpu") else "auto"
    check_attention(attention, where, wanted)
    return where, wanted


def auto_class(config: Any) -> Any:
    """What loads such a model, None if it is none that reads images and writes text."""
    if type(config) in AutoModelForImageTextToText._model_mapping:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM if config.model_type in CAUSAL else None


def _check_family(source: str, config: Any) -> Any:
    """What loads such a model; what cannot be pruned whatever its weights are is refused before they are read."""
    kind = auto_class(config)
    if kind is None:
        raise UnsupportedModelError(
            f"{source} is a '{config.model_type}' model, which transformers does not load as one that reads images and "
            "writes text (AutoModelForImageTextToText)."
        )
    if reason := type_refusal(config):
        raise UnsupportedModelError(f"{source} is a '{config.model_type}' model, which cannot be pruned: {reason}")
    return kind


def _source(name: str) -> str:
    """The folder or Hub id that a name stands for."""
    source = zoo.resolve(name)
    source = str(Path(source).expanduser()) if source.startswith("~") else source
    _check_place(source)
    return source


def _check_place(source: str) -> None:
    """Tell the ordinary mistakes apart before the Hub is asked for an id that is none."""
    place = Path(source)
    if place.is_file():
        raise CheckpointError(f"Cannot load a model from {source}: it is a file; give the folder with its config.json.")
    if place.is_dir():
        if not (place / "config.json").is_file():
            raise CheckpointError(f"Cannot load a model from {source}: the folder has no config.json.")
        return
    if source.startswith((".", os.sep)) or source.count("/") != 1:
        names = ", ".join(zoo.names())
        raise CheckpointError(
            f"Cannot load a model from {source}: there is no such folder, and it is no Hub id (owner/name). The models "
            f"that ship with foveate are {names}."
        )


def _check_weights(source: str) -> None:
    place = Path(source)
    if place.is_dir() and not any(place.glob("*.safetensors")) and not any(place.glob("*.bin")):
        raise CheckpointError(
            f"Cannot load a model from {source}: the folder has no weights (*.safetensors beside config.json)."
        )


def _unreadable(source: str, error: Exception) -> CheckpointError:
    if Path(source).is_dir():
        return CheckpointError(
            f"Cannot load a model from folder {source}: {_first_line(error)} "
            "It must hold config.json and safetensors weights; write or download it again if it is incomplete."
        )
    return CheckpointError(f"Cannot load a model from the Hub id {source} (there is no such folder): {_why(error)}")


def _why(error: BaseException) -> str:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    if any(isinstance(one, GatedRepoError) for one in chain):
        return "its owner must grant access; ask there, then log in with `hf auth login`."
    if any(isinstance(one, RepositoryNotFoundError) for one in chain):
        return "the Hub has no such model, or it is private: check the name, or log in with `hf auth login`."
    if any(isinstance(one, HFValidationError) for one in chain):
        return "this is no name that the Hub allows."
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "it is not in the local cache, and HF_HUB_OFFLINE forbids downloading it: unset that, or give a folder."
    return f"{_first_line(error)} Is the network there?"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0].strip() if lines else type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."
