"""Official GlimpsePrune checkpoints: `config.json` + `new_modules_gp.pt`.

The weights are a pickle, which may run any code when it is read the ordinary way. It is only ever read with
`weights_only=True`, and its contents are checked against the configuration before a module is built.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.errors import CheckpointError, FoveateError
from foveate.glimpse.config import GlimpseConfig
from foveate.glimpse.module import GlimpseModule

WEIGHTS = "new_modules_gp.pt"
_FAMILIES = {"qwen2_5_vl_gp": "qwen2_5_vl", "llava_llama_gp": "llava"}
_NAMES = {
    "attn_fuser": "vip",
    "learnable_embeddings": "embeddings",
    "le_proj": "projection",
    "le_norm": "norm",
}


def is_official(folder: Path) -> bool:
    """Whether `folder` has the official layout."""
    return (folder / WEIGHTS).is_file()


def load_module(source: str | Path | GlimpseModule) -> GlimpseModule:
    """A module as it is; a folder in our or the official layout; else an id on the Hugging Face hub."""
    if isinstance(source, GlimpseModule):
        return source
    if is_official(Path(source)):
        return load_official(source)
    return GlimpseModule.from_pretrained(str(source))


def load_official(folder: str | Path) -> GlimpseModule:
    """Read a released GlimpsePrune checkpoint (`config.json` + `new_modules_gp.pt`), for inference.

    Raises:
        CheckpointError: missing, truncated or malicious file, missing key, wrong shape.
    """
    config, state = read_official(Path(folder))
    module = GlimpseModule(config)
    module.load_state_dict(state)
    return module.eval()


def convert(source: str | Path, destination: str | Path) -> GlimpseModule:
    """Rewrite an official checkpoint as `config.json` + `model.safetensors`.

    Raises:
        CheckpointError: `source` is no readable official checkpoint, or `destination` already holds files.
    """
    destination = Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise CheckpointError(f"{destination} already exists and is not an empty folder; choose another one")
    module = load_official(source)
    module.save_pretrained(destination)
    return module


def read_official(folder: Path) -> tuple[GlimpseConfig, dict[str, Tensor]]:
    """Configuration and state dict (our names) of an official checkpoint.

    Raises:
        CheckpointError: with the file, the defect and the remedy.
    """
    config = _read_config(folder / "config.json")
    state = rename(_read_weights(folder / WEIGHTS), folder / WEIGHTS)
    with torch.device("meta"):
        model = GlimpseModule(config)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    missing, unknown = expected.keys() - state.keys(), state.keys() - expected.keys()
    if missing or unknown:
        raise CheckpointError(
            f"{folder / WEIGHTS} does not match {folder / 'config.json'}: missing "
            f"{sorted(missing) or 'nothing'}, "
            f"unknown {sorted(unknown) or 'nothing'}"
        )
    for name, shape in expected.items():
        if state[name].shape != shape:
            raise CheckpointError(
                f"{folder / WEIGHTS}: {name} has shape {list(state[name].shape)}, "
                f"but the configuration asks for {list(shape)}"
            )
    return config, {name: tensor.float() for name, tensor in state.items()}


def rename(contents: Any, where: Path | str) -> dict[str, Tensor]:
    """Flatten `{attn_fuser: {...}, learnable_embeddings: tensor, ...}` to our parameter names."""
    if not isinstance(contents, Mapping) or contents.keys() != _NAMES.keys():
        found = sorted(map(str, contents)) if isinstance(contents, Mapping) else type(contents).__name__
        raise CheckpointError(f"{where} holds {found} instead of a dictionary of {sorted(_NAMES)}")
    state: dict[str, Any] = {}
    for official, ours in _NAMES.items():
        part = contents[official]
        state |= {f"{ours}.{k}": v for k, v in part.items()} if isinstance(part, Mapping) else {ours: part}
    strays = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if strays:
        raise CheckpointError(f"{where}: {strays[0]} is no tensor")
    return state


def _read_weights(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; an official checkpoint has config.json and {WEIGHTS}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different type for every way a pickle can be bad
        raise CheckpointError(
            f"{path} was not read: it is truncated, or contains something other than tensors, which may "
            f"be an "
            f"attempt to run code. Fetch it again from its publisher. ({type(error).__name__})"
        ) from error


def _read_config(path: Path) -> GlimpseConfig:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} was not read: {error}") from error
    family = _FAMILIES.get(str(raw.get("model_type"))) if isinstance(raw, dict) else None
    if family is None:
        raise CheckpointError(
            f"{path}: model_type must be one of {', '.join(sorted(_FAMILIES))} for a GlimpsePrune checkpoint"
        )
    try:
        return _translate(raw, family)
    except KeyError as error:
        raise CheckpointError(f"{path} lacks the entry {error}") from error
    except (FoveateError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _translate(raw: dict[str, Any], family: str) -> GlimpseConfig:
    if raw["attn_fuse_type"] != "AttnFuserV1" or raw.get("le_norm_type", "rmsnorm") != "rmsnorm":
        raise CheckpointError("only attn_fuse_type AttnFuserV1 with le_norm_type rmsnorm is supported")
    text = {**raw, **raw.get("text_config", {})}
    vision = raw["vision_config"] if family == "qwen2_5_vl" else {"hidden_size": raw["mm_hidden_size"]}
    windowed = family == "qwen2_5_vl" and not raw["attn_fuse_global"]
    return GlimpseConfig(
        family=family,
        base_model=raw.get("_name_or_path", ""),
        hidden_size=text["hidden_size"],
        num_attention_heads=text["num_attention_heads"],
        num_hidden_layers=text["num_hidden_layers"],
        rms_norm_eps=text["rms_norm_eps"],
        vision_hidden_size=vision["hidden_size"],
        selected_layers=raw["selected_layers"],
        reduce_layer=min(raw["reduce_layer"], text["num_hidden_layers"] - 1),  # any number above means: behind all
        le_layers=raw["le_layers"],
        le_length=raw["le_length"],
        le_dropout=raw.get("le_dropout_prob", 0.1),
        selected_visual_layers=raw["selected_visual_layers"],
        use_attention_logits=raw["use_attention_logits"],
        threshold=raw.get("reduce_threshold", 0.5),
        max_keep=raw.get("max_remain_ratio"),
        min_keep=raw.get("min_remain_num", 1),
        anchors=raw.get("anchor_positions") or (),
        vip_width=raw["attn_fuse_size"],
        vip_cond_width=raw["visual_cond_size"],
        vip_heads=raw["attn_fuse_num_heads"],
        vip_act=raw["attn_fuse_hidden_act"],
        vip_window=vision["window_size"] // vision["patch_size"] // vision.get("spatial_merge_size", 2)
        if windowed
        else None,
        deep_supervision=raw.get("deep_supervision", False),
        raw_attention=raw.get("ori_attn_supervision", False),
    )
