"""Small checkpoints in the file layout of the published ones: what a reader of docs/reproduce.md downloads.

Names of files, keys of configurations, names and types of weights and their division into files are those of
llava-hf/llava-1.5-7b-hf, Qwen/Qwen2.5-VL-7B-Instruct and ashun989/GlimpsePrune_Qwen2.5-VL-7B-Instruct; numbers and
weights are the built-in models', so that answers can be checked as well. Tokens and chat templates are the built-in
models' too.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from foveate import zoo
from foveate.glimpse import GlimpseModule
from foveate.glimpse.official import _NAMES, WEIGHTS

LLAVA, QWEN = "llava-hf/llava-1.5-7b-hf", "Qwen/Qwen2.5-VL-7B-Instruct"
GLIMPSE = "ashun989/GlimpsePrune_Qwen2.5-VL-7B-Instruct"
OF_LLAVA, OF_QWEN = Path(zoo.resolve("foveate/scenes-llava")), Path(zoo.resolve(zoo.DEFAULT))
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
SPECIAL = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def write_llava(folder: Path) -> None:
    """Text and vision configurations with what differs from the classes' defaults only, three files of float16."""
    own = json.loads((OF_LLAVA / "config.json").read_text())
    text = {"_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"], "torch_dtype": "float16"}
    text |= {key: value for key, value in own["text_config"].items() if key != "tie_word_embeddings"}
    text["rope_theta"] = text["rope_parameters"].pop("rope_theta")
    text["rope_scaling"] = text.pop("rope_parameters")
    config = {
        "architectures": own["architectures"], "ignore_index": -100, "image_token_index": own["image_token_index"],
        "model_type": "llava", "pad_token_id": text["pad_token_id"], "projector_hidden_act": "gelu",
        "text_config": text, "tie_word_embeddings": False, "torch_dtype": "float16",
        "transformers_version": "4.36.0.dev0", "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
        "vision_config": own["vision_config"] | {"vocab_size": 32000},
    }  # fmt: skip
    state = {}
    for name, tensor in load_file(OF_LLAVA / "model.safetensors").items():
        state[name.replace("vision_tower.", "vision_tower.vision_model.")] = tensor.half()
    state["language_model.lm_head.weight"] = state["language_model.model.embed_tokens.weight"].clone()
    images = {
        "crop_size": {"height": 336, "width": 336}, "do_center_crop": True, "do_convert_rgb": True,
        "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": MEAN,
        "image_processor_type": "CLIPImageProcessor", "image_std": STD, "processor_class": "LlavaProcessor",
        "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 336},
    }  # fmt: skip
    _write(folder, OF_LLAVA, config, state, 3, images, "LlavaProcessor")
    _json(folder / "processor_config.json", {
        "image_token": "<|image_pad|>", "num_additional_image_tokens": 1, "patch_size": 14,
        "processor_class": "LlavaProcessor", "vision_feature_select_strategy": "default",
    })  # fmt: skip
    _json(folder / "special_tokens_map.json", SPECIAL)
    generation = {"bos_token_id": 519, "eos_token_id": 520, "pad_token_id": 518, "transformers_version": "4.36.0.dev0"}
    _json(folder / "generation_config.json", {"_from_model_config": True} | generation)


def write_qwen(folder: Path) -> None:
    """The language model's numbers at the top of the configuration, five files of bfloat16, sampling by default."""
    state = load_file(OF_QWEN / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    images = {
        "min_pixels": 12544, "max_pixels": 451584, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": MEAN, "image_std": STD, "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    }  # fmt: skip
    _write(folder, OF_QWEN, qwen_config(), state, 5, images, "Qwen2_5_VLProcessor")
    tokens = json.loads((OF_QWEN / "tokenizer.json").read_text())["model"]
    _json(folder / "vocab.json", tokens["vocab"])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in tokens["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    _json(folder / "generation_config.json", {
        "bos_token_id": 518, "pad_token_id": 518, "do_sample": True, "eos_token_id": [520, 518],
        "repetition_penalty": 1.05, "temperature": 0.000001, "transformers_version": "4.49.0",
    })  # fmt: skip


def qwen_config() -> dict[str, Any]:
    own = json.loads((OF_QWEN / "config.json").read_text())
    text = {key: value for key, value in own["text_config"].items() if key not in ("layer_types", "model_type")}
    rope = text.pop("rope_parameters")
    vision = {key: value for key, value in own["vision_config"].items() if key not in ("model_type", "rope_parameters")}
    vision |= {"in_chans": vision.pop("in_channels"), "spatial_patch_size": vision["patch_size"]}
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return {
        "architectures": own["architectures"], "model_type": "qwen2_5_vl", "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2", "vision_config": vision, **{name: own[name] for name in names},
        **text, "tie_word_embeddings": False, "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
    }  # fmt: skip


def write_glimpse(folder: Path) -> None:
    """The shipped module as the official code stores one: in its base's configuration, and as a pickle."""
    module = GlimpseModule.from_pretrained(str(OF_QWEN / "glimpse"))
    ours = module.config
    config = qwen_config() | {
        "model_type": "qwen2_5_vl_gp", "architectures": ["Qwen2_5_VL_GP_ForConditionalGeneration"],
        "anchor_positions": [], "attn_fuse_global": True, "attn_fuse_hidden_act": ours.vip_act,
        "attn_fuse_num_heads": ours.vip_heads, "attn_fuse_size": ours.vip_width, "attn_fuse_type": "AttnFuserV1",
        "deep_supervision": ours.deep_supervision, "le_dropout_prob": ours.le_dropout,
        "le_layers": list(ours.le_layers), "le_length": ours.le_length, "le_norm_type": "rmsnorm",
        "max_remain_ratio": ours.max_keep, "min_remain_num": ours.min_keep, "ori_attn_supervision": ours.raw_attention,
        "reduce_layer": ours.reduce_layer, "reduce_threshold": ours.threshold,
        "selected_layers": list(ours.selected_layers), "selected_visual_layers": list(ours.selected_visual_layers),
        "use_attention_logits": ours.use_attention_logits, "use_ref_masks": False, "use_zero_masks": False,
        "visual_cond_size": ours.vip_cond_width,
    }  # fmt: skip
    folder.mkdir(parents=True)
    _json(folder / "config.json", config)
    state = module.state_dict()
    parts: dict[str, Any] = {}
    for official, name in _NAMES.items():
        below = {key.removeprefix(f"{name}."): state[key] for key in state if key.startswith(f"{name}.")}
        parts[official] = below or state[name]
    torch.save(parts, folder / WEIGHTS)


def _write(
    folder: Path, source: Path, config: dict[str, Any], state: dict[str, Tensor], files: int, images: dict[str, Any],
    processor: str,
) -> None:  # fmt: skip
    """What both have: configuration, divided weights with their index, tokens, a chat template in a file of JSON."""
    folder.mkdir(parents=True)
    _json(folder / "config.json", config)
    _json(folder / "preprocessor_config.json", images)
    names, placed = sorted(state), {}
    for number in range(files):
        own = names[number::files]
        file = f"model-{number + 1:05}-of-{files:05}.safetensors"
        save_file({name: state[name] for name in own}, folder / file, {"format": "pt"})
        placed |= dict.fromkeys(own, file)
    size = sum(tensor.nbytes for tensor in state.values())
    _json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": placed})
    shutil.copy(source / "tokenizer.json", folder)
    tokens = {"model_max_length": 131072, "padding_side": "left", "processor_class": processor}
    template = (source / "chat_template.jinja").read_text(encoding="utf-8")
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    _json(folder / "tokenizer_config.json", SPECIAL | tokens | kind)
    _json(folder / "chat_template.json", {"chat_template": template})


def _json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2), encoding="utf-8")
